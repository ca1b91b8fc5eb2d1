"""The factor that brings activations to a mean norm of sqrt(d_in).

From "Update on how we train SAEs" (Anthropic, April 2024): with activations of that norm, one
sparsity coefficient fits all models and layers.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

EXPECTED_AVERAGE = "expected_average_only_in"


def norm_scaling_factor(activations: Float[Tensor, "*batch d_in"]) -> Float[Tensor, ""]:
    """sqrt(d_in) / mean L2 norm."""
    return math.sqrt(activations.shape[-1]) / activations.norm(dim=-1).mean()


def scaled(activations: Tensor, factor: float | Tensor) -> Tensor:
    """Activations times the factor; of a factor for each column of a row, its first ones."""
    if isinstance(factor, Tensor) and factor.ndim:
        factor = factor[: activations.shape[-1]].to(activations)
    return activations * factor


def unscaled(activations: Tensor, factor: float | Tensor) -> Tensor:
    """Activations divided by the factor; of a factor for each column of a row, its last ones."""
    if isinstance(factor, Tensor) and factor.ndim:
        factor = factor[-activations.shape[-1] :].to(activations)
    return activations / factor


class FactorEstimate:
    """The factor of rows that come in batches, or one for each of several activations in a row.

    Args:
        width: of a row, or of every activation in it.
        one_for_each: whether each activation has a factor of its own.
    """

    def __init__(self, width: int, one_for_each: bool = False) -> None:
        self.width = width
        self.one_for_each = one_for_each
        self._norms: list[Tensor] = []

    @torch.no_grad()
    def add(self, rows: Float[Tensor, "batch 1 d_in"]) -> None:
        """Take a batch of unscaled rows into account."""
        norms = rows[:, 0].float().unflatten(-1, (-1, self.width)).norm(dim=-1)
        self._norms.append(norms.mean(dim=0).cpu())

    def factor(self) -> float | Float[Tensor, " d_in"]:
        """sqrt(width) / mean over batches of the mean norm in the batch.

        Returns:
            a number, or with a factor for each activation one for each column of a row.

        Raises:
            ValueError: when a mean is zero or not finite.
        """
        found = [factor_of_norms(norms, self.width) for norms in self._by_activation()]
        if not self.one_for_each:
            return found[0]
        return torch.tensor(found).repeat_interleave(self.width)

    def _by_activation(self) -> list[list[float]]:
        return torch.stack(self._norms).T.tolist() if self._norms else [[]]


def factor_of_norms(norms: list[float], d_in: int) -> float:
    """sqrt(d_in) / mean of the mean norms of batches.

    Raises:
        ValueError: when the mean is zero or not finite.
    """
    mean_norm = sum(norms) / max(len(norms), 1)
    if not math.isfinite(mean_norm) or mean_norm == 0.0:
        raise ValueError(
            f"The mean norm of the activations over {len(norms)} batches is {mean_norm}, so they "
            "cannot be scaled. Check the model's outputs at this hook, or use "
            "normalize_activations='none'."
        )
    return math.sqrt(d_in) / mean_norm
