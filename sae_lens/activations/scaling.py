"""The factor that brings activations to a mean norm of sqrt(d_in).

From "Update on how we train SAEs" (Anthropic, April 2024): with activations of that norm, one
sparsity coefficient fits all models and layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

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


@torch.no_grad()
def estimate_norm_scaling_factor(
    next_batch: Callable[[], Float[Tensor, "batch *rest d_in"]],
    n_batches: int,
    is_over: Callable[[], bool],
) -> float:
    """sqrt(d_in) / mean over batches of the mean L2 norm in the batch.

    Args:
        next_batch: gives unscaled activations.
        n_batches: how many batches to draw.
        is_over: whether all of the data has been seen, so that more batches would only repeat it.

    Raises:
        ValueError: when the mean norm is zero or not finite.
    """
    norms: list[float] = []
    batch = torch.empty(0)
    for _ in tqdm(range(n_batches), desc="Estimating norm scaling factor"):
        batch = next_batch()
        norms.append(batch.float().norm(dim=-1).mean().item())
        if is_over():
            break
    return factor_of_norms(norms, batch.shape[-1])


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
