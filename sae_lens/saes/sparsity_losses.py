"""Sparsity terms of a batch of features: each a pure function, a mean over tokens.

`weighted` are features times the norms of their decoder rows, so that shrinking a feature and
growing its row gains nothing (Conerly et al. 2024, "Update on how we train SAEs").
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.saes.losses import lp_sparsity

SparsityLossName = Literal["power", "tanh", "tanh-quad"]
SPARSITY_LOSSES: tuple[str, ...] = get_args(SparsityLossName)


def power_sparsity(weighted: Float[Tensor, "batch d_sae"], p: float) -> Float[Tensor, ""]:
    """`||s||_p` of each token (the norm, not its p-th power)."""
    return lp_sparsity(weighted, p).mean()


def tanh_sparsity(weighted: Float[Tensor, "batch d_sae"], stretch: float) -> Float[Tensor, ""]:
    """`sum_i tanh(c s_i)` of each token: close to L0 for large c.

    Conerly et al. 2025, "Dictionary Learning Optimization Techniques" (Circuits Updates, January
    2025), section "Sparsity penalty".
    """
    return torch.tanh(stretch * weighted).sum(dim=-1).mean()


def tanh_quad_sparsity(
    weighted: Float[Tensor, "batch d_sae"], stretch: float, frequency_scale: float
) -> Float[Tensor, ""]:
    """`sum_i q_i (1 + q_i / frequency_scale)` with `q_i` the mean over tokens of `tanh(c s_i)`.

    The quadratic part makes features that fire more often than `frequency_scale` expensive. Idea:
    Rajamanoharan et al. 2025, "Removing High Frequency Latents from JumpReLU SAEs".
    """
    frequency = torch.tanh(stretch * weighted).mean(dim=0)
    return (frequency * (1 + frequency / frequency_scale)).sum()


def quadratic_l0(l0: Float[Tensor, " batch"], target_l0: float) -> Float[Tensor, ""]:
    """`(2 / T) (l0 - T)^2`: features are cheap below the target and expensive above it."""
    return ((2.0 / target_l0) * (l0 - target_l0).pow(2)).mean()


def sparsity_loss(
    kind: SparsityLossName,
    weighted: Float[Tensor, "batch d_sae"],
    p: float = 1.0,
    stretch: float = 4.0,
    frequency_scale: float = 0.01,
) -> Float[Tensor, ""]:
    """The term called `kind`, "power", "tanh" or "tanh-quad", without a coefficient.

    Raises:
        ValueError: for another name.
    """
    if kind == "power":
        return power_sparsity(weighted, p)
    if kind == "tanh":
        return tanh_sparsity(weighted, stretch)
    if kind == "tanh-quad":
        return tanh_quad_sparsity(weighted, stretch, frequency_scale)
    raise ValueError(f"Unknown sparsity loss {kind!r}; allowed are power, tanh and tanh-quad.")


def largest_dead_acts(
    hidden_pre: Float[Tensor, "batch n_dead"], k: int, norms: Float[Tensor, " n_dead"] | None
) -> Float[Tensor, "batch n_dead"]:
    """Aux-k's activations, for any activation function: what dead features model a residual with.

    Gao et al. 2024 (arXiv:2406.04093): the `k` largest pre-activations of each token, through ReLU.
    Thresholds are left out, as a dead feature does not pass its own.

    Args:
        hidden_pre: pre-activations of the dead features.
        k: how many of them model each token.
        norms: their decoder norms, to rank by pre-activation times norm; None ranks without.
    """
    rank = hidden_pre.detach()
    if norms is not None:
        rank = rank * norms
    chosen = torch.topk(rank, min(k, rank.shape[-1]), dim=-1, sorted=False).indices
    values = torch.relu(hidden_pre.gather(-1, chosen))
    return torch.zeros_like(hidden_pre).scatter(-1, chosen, values)
