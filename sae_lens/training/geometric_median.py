"""The geometric median of a set of points: where a decoder's bias starts.

Weiszfeld's iteration (E. Weiszfeld, "Sur le point pour lequel la somme des distances de n points
donnés est minimum", 1937) with weights cut off at a small distance, as in "Robust Aggregation for
Federated Learning" (Pillutla, Kakade, Harchaoui, 2022). Distances are taken in pieces, so that no
second array of the points' size is ever made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

_ROWS_PER_PIECE = 1024


class GeometricMedian(NamedTuple):
    """What `compute_geometric_median` found."""

    median: Tensor
    """[d]"""
    new_weights: Tensor
    """[n], the weights with which the median is the average of the points"""
    termination: str
    """why the iteration ended"""
    logs: list[float] | None
    """the objective after every iteration, when asked for"""


def weighted_average(
    points: Float[Tensor, "n d"], weights: Float[Tensor, " n"]
) -> Float[Tensor, " d"]:
    """The average of the rows of `points`, with weights that need not sum to one."""
    weights = weights / weights.sum()
    return (weights.to(points.dtype) @ points).to(weights.dtype)


def geometric_median_objective(
    median: Float[Tensor, " d"], points: Float[Tensor, "n d"], weights: Float[Tensor, " n"]
) -> Tensor:
    """Weighted sum of the distances of the points to `median` (scalar tensor)."""
    return (_distances(points, median) * weights).sum()


def compute_geometric_median(
    points: Float[Tensor, "n d"],
    weights: Float[Tensor, " n"] | None = None,
    eps: float = 1e-6,
    maxiter: int = 100,
    ftol: float = 1e-20,
    do_log: bool = False,
    *,
    verbose: bool = False,
) -> GeometricMedian:
    """The point with the smallest weighted sum of distances to `points`.

    Args:
        points: [n, d].
        weights: [n], equal when not given.
        eps: distances below this count as this, which keeps the weights finite.
        maxiter: largest number of iterations.
        ftol: the iteration ends when the objective changes by at most this share of itself.
        do_log: return the objective after every iteration.
        verbose: show a progress bar.

    Raises:
        ValueError: without any point.
    """
    if points.ndim != 2 or len(points) == 0:
        raise ValueError(
            f"The geometric median needs points of shape [n, d] with n > 0, not "
            f"{tuple(points.shape)}."
        )
    # Weights and distances of half-precision points are kept in float32.
    dtype = torch.promote_types(points.dtype, torch.float32)
    with torch.no_grad():
        if weights is None:
            weights = torch.ones(len(points), device=points.device, dtype=dtype)
        new_weights = weights
        median = weighted_average(points, weights)
        distances = _distances(points, median)
        objective = (distances * weights).sum()
        logs = [objective.item()] if do_log else None
        termination = "maximum iterations reached"
        for _ in tqdm(range(maxiter), desc="Geometric median", disable=not verbose):
            previous = objective
            new_weights = weights / distances.clamp(min=eps)
            median = weighted_average(points, new_weights)
            distances = _distances(points, median)
            objective = (distances * weights).sum()
            if logs is not None:
                logs.append(objective.item())
            if (previous - objective).abs() <= ftol * objective:
                termination = "function value converged within tolerance"
                break
    # Once more with gradients: the weights are constants, the points may be differentiated.
    median = weighted_average(points, new_weights)
    return GeometricMedian(median, new_weights, termination, logs)


def _distances(points: Tensor, median: Tensor) -> Tensor:
    dtype = torch.promote_types(points.dtype, torch.float32)
    median = median.to(dtype)
    return torch.cat(
        [
            torch.linalg.vector_norm(piece.to(dtype) - median, dim=-1)
            for piece in points.split(_ROWS_PER_PIECE)
        ]
    )
