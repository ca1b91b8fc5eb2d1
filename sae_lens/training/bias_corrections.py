"""What Adam divides its moments by, since they start at 0: `1 - beta ** step`."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def bias_corrections(
    step: int | Float[Tensor, ""], betas: tuple[float, float]
) -> tuple[float | Tensor, float | Tensor]:
    """Those of the mean of gradients and of their squares.

    Args:
        step: how many updates there have been. As a scalar tensor where the host does not know,
            because the device skips steps by itself; 0 then counts as 1.
        betas: the decays of both.
    """
    if isinstance(step, Tensor):
        n = step.clamp(min=1)
        # -expm1(x) is 1 - exp(x) without the loss of digits near 0
        first, second = (
            -torch.expm1(n * math.log(beta)) if beta > 0 else torch.ones_like(n) for beta in betas
        )
        return first, second
    return 1 - betas[0] ** step, 1 - betas[1] ** step
