"""Dead features start anew at activations that are reconstructed badly.

Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron Resampling": the direction of an
activation drawn with probability proportional to its squared loss, an encoder of a fifth of the
others' mean norm, bias 0, and fresh moments of the optimiser. Thresholds of jumprelu features start
as at first.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Optimizer

from sae_lens.kernels.determinism import wants_determinism
from sae_lens.training.loss_schedules import check_steps, resolve_steps

logger = logging.getLogger(__name__)

_BIASES = {"b_enc", "b_gate", "b_mag", "r_mag"}


@dataclass
class Resampling:
    """Dead features start anew at activations that are reconstructed badly.

    Attributes:
        every: steps between two resamplings.
        until: no resampling after that step.
        encoder_norm: norm of the new encoder as a share of the mean of the living.
    """

    every: int
    until: int | float = 0.5
    encoder_norm: float = 0.2

    def __post_init__(self) -> None:
        check_steps("resampling.until", self.until)
        if self.every < 1:
            raise ValueError(f"resampling.every is {self.every}; it must be at least 1.")
        if not self.encoder_norm > 0:
            raise ValueError(f"resampling.encoder_norm is {self.encoder_norm}; it must be above 0.")

    def is_due(self, step: int, total_steps: int, n_steps: int = 1) -> bool:
        """Whether features are resampled after `step`, an update by the last `n_steps`."""
        last = min(step, resolve_steps(self.until, total_steps) - 1)
        return (last + 1) // self.every > (step + 1 - n_steps) // self.every

    def check_fits(self, sae: Any, total_steps: int) -> None:
        """`ValueError` when the SAE has no such weights, or resampling would never happen."""
        has_both = {"W_enc", "W_dec"} <= set(sae._parameters)
        if not has_both or sae.W_enc.shape[-1] != len(sae.W_dec):
            raise ValueError(
                "resampling needs an encoder and a decoder with a column and a row for each "
                f"feature; {sae.cfg.architecture!r} SAEs have no such weights."
            )
        last = resolve_steps(self.until, total_steps)
        if self.every > last:
            raise ValueError(
                f"resampling.every is {self.every} and resampling.until means step {last} of "
                f"{total_steps}, so that nothing would ever be resampled; make the first smaller "
                "or the second larger."
            )


@torch.no_grad()
def resample_dead_features(
    sae: Any,
    optimizer: Optimizer,
    batch: Float[Tensor, "batch width"],
    output: Any,
    dead: Bool[Tensor, " d_sae"],
    encoder_norm: float,
) -> int:
    """Start dead features anew at badly reconstructed activations; how many there were.

    A decoder row gets the direction of what was to be reconstructed, an encoder column that of what
    is encoded; for SAEs they are the same.
    """
    index = dead.nonzero().squeeze(1)
    if not len(index):
        return 0
    loss = (output.sae_in.to(sae.dtype) - output.sae_out).pow(2).sum(dim=-1)
    if not bool(loss.sum() > 0):
        return 0
    weights = loss.float().pow(2)
    if wants_determinism(weights.device):
        weights = weights.cpu()  # on CUDA there is no form of it that repeats itself
    drawn = torch.multinomial(weights, len(index), replacement=True).to(loss.device)
    x, target = sae.split_batch(batch[drawn])
    encoded = _directions(sae.process_sae_in(x))
    decoded = encoded if target is x else _directions(target.to(sae.dtype) - sae.b_dec)
    alive = ~dead
    row_norm = sae.W_dec[alive].norm(dim=-1).mean() if bool(alive.any()) else 1.0
    column_norm = sae.W_enc[:, alive].norm(dim=0).mean() if bool(alive.any()) else 1.0
    sae.W_dec[index] = decoded * row_norm
    sae.W_enc[:, index] = (encoded * column_norm * encoder_norm).T
    changed = [(sae.W_dec, 0), (sae.W_enc, 1)]
    first_values = dict.fromkeys(_BIASES, 0.0) | _first_thresholds(sae)
    for name in first_values.keys() & sae._parameters.keys():
        sae._parameters[name][index] = first_values[name]
        changed.append((sae._parameters[name], 0))
    for parameter, axis in changed:
        for value in optimizer.state.get(parameter, {}).values():
            # whole numbers are codes of 8-bit moments, in which 0 does not stand for 0
            is_moment = isinstance(value, Tensor) and value.is_floating_point()
            if is_moment and value.shape == parameter.shape:
                value.index_fill_(axis, index, 0)
    logger.info("Resampled %d dead features.", len(index))
    return len(index)


def _first_thresholds(sae: Any) -> dict[str, float]:
    """What thresholds start with: one that has risen would keep the new feature dead."""
    first = getattr(sae.cfg, "jumprelu_init_threshold", None)
    if first is None:
        return {}
    return {"threshold": first, "log_threshold": math.log(max(first, 1e-30))}


def _directions(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
