"""Adam whose weights and moments are bfloat16, rounded stochastically.

A bfloat16 has eight bits of precision, so that an update smaller than about 1/256 of a weight is
lost when the sum is rounded to the nearest number, step after step. Rounded up or down at random,
with probabilities in proportion to the distances, it is kept on average (Gupta et al. 2015, "Deep
Learning with Limited Numerical Precision", arXiv:1502.02551). The same holds for the moments, of
which a step changes the second by a thousandth. Weights, gradients and moments then take 8 bytes
per parameter instead of 16, and the arithmetic is that of float32, piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

# A MiB of float32: the few of these that an update needs stay in the processor's cache.
_ELEMENTS_PER_PIECE = 1 << 18


class LowPrecisionAdam(Optimizer):
    """See the module's text. Parameters of other dtypes are updated as by plain Adam.

    The random numbers follow from `seed`, the step and the place in the parameter, so a run that
    goes on from a checkpoint rounds as it would have done.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the mean of gradients and of their squares.
        eps: added to the root of the second moment.
        seed: of the rounding.

    Raises:
        ValueError: for a negative lr or eps, or betas outside [0, 1).
    """

    # As torch's fused optimisers, it can divide gradients and skip a step by itself.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr={lr}, betas={betas}, eps={eps}: lr and eps must not be negative, betas must "
                "lie in [0, 1)."
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "seed": seed, "fused": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return loss
        divisor: Tensor | None = getattr(self, "grad_scale", None)
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                index += 1
                if parameter.grad is not None:
                    self._update(parameter, group, divisor, index)
        return loss

    def _update(
        self, parameter: Tensor, group: dict[str, Any], divisor: Tensor | None, index: int
    ) -> None:
        state = self.state[parameter]
        if not state:
            # The count is a tensor, as in torch's optimisers, so that checkpoints hold it alike.
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        step = int(state["step"])
        generator = torch.Generator(parameter.device)
        # an odd factor far from powers of two keeps the seeds of neighbouring steps apart
        generator.manual_seed((group["seed"] * 1_000_003 + step) * 65_537 + index)
        beta1, beta2 = group["betas"]
        step_size = group["lr"] / (1 - beta1**step)
        root_of_correction = math.sqrt(1 - beta2**step)

        flat = [
            _pieces(t, parameter)
            for t in (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        ]
        for weight, gradient, mean, square in zip(*flat, strict=True):
            g = gradient.float() if divisor is None else gradient.float() / divisor
            m = mean.float().lerp_(g, 1 - beta1)
            s = square.float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
            root = s.sqrt().div_(root_of_correction).add_(group["eps"])
            w = weight.float().addcdiv_(m, root, value=-step_size)
            if weight.dtype == torch.bfloat16:
                noise = _sixteen_random_bits(w.numel(), generator)
                for target, value in ((weight, w), (mean, m), (square, s)):
                    round_stochastically(value, noise, out=target)
            else:
                for target, value in ((weight, w), (mean, m), (square, s)):
                    target.copy_(value)


def round_stochastically(
    values: Float[Tensor, " n"], noise: Tensor, out: Float[Tensor, " n"]
) -> None:
    """Round float32 to bfloat16, up with the probability that is the share of the way up.

    Args:
        values: contiguous float32; overwritten.
        noise: int32 from 0 to 65535, evenly distributed.
        out: bfloat16, contiguous. Infinities and NaN stay what they are.
    """
    bits = values.view(torch.int32)
    # A bfloat16 is the upper half of a float32: a carry out of the lower half rounds up.
    # An infinite one would be broken by a carry; away from the CPU, asking would mean to wait.
    if values.device.type == "cpu" and bool(values.sum().isfinite()):
        bits.add_(noise).bitwise_and_(-65536)
        out.copy_(values)
        return
    rounded = ((bits + noise) & -65536).view(torch.float32)
    out.copy_(torch.where(values.isfinite(), rounded, values))


def _sixteen_random_bits(n: int, generator: torch.Generator) -> Tensor:
    """`n` int32 from 0 to 65535, four from each draw."""
    draws = torch.empty((n + 3) // 4, dtype=torch.int64, device=generator.device)
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:n].to(torch.int32).bitwise_and_(65535)


def _pieces(tensor: Tensor | None, like: Tensor) -> list[Tensor]:
    """One-dimensional views of parts of a tensor, in the order of `like`'s memory."""
    assert tensor is not None
    order = sorted(range(like.ndim), key=lambda axis: -like.stride(axis))
    ordered = tensor.permute(order)
    if ordered.is_contiguous():
        return list(ordered.view(-1).split(_ELEMENTS_PER_PIECE))
    if tensor is like:
        raise ValueError(
            f"LowPrecisionAdam needs parameters that fill their memory, not one of strides "
            f"{tuple(like.stride())} for the shape {tuple(like.shape)}."
        )
    return list(ordered.reshape(-1).split(_ELEMENTS_PER_PIECE))
