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


def dead_feature_reconstruction_loss(
    residual: Float[Tensor, "batch d_out"],
    hidden_pre: Float[Tensor, "batch n_dead"],
    W_dec: Float[Tensor, "n_dead d_out"],
    k: int,
    select_by_decoder_norm: bool,
) -> Float[Tensor, ""]:
    """Aux-k for any activation function: dead features model what is left over.

    Gao et al. 2024 (arXiv:2406.04093), section 2.4 and appendix A.2: the `k` largest
    pre-activations of each token, through ReLU, without bias. Thresholds are left out, as a dead
    feature does not pass its own. The residual carries no gradient, so only the dead features given
    here learn.

    Args:
        residual: what the reconstruction misses.
        hidden_pre: pre-activations of the dead features.
        W_dec: their decoder rows.
        k: how many of them model each token.
        select_by_decoder_norm: rank by pre-activation times row norm.
    """
    k = min(k, hidden_pre.shape[-1])
    if k == 0:
        return residual.new_zeros(())
    rank = hidden_pre.detach()
    if select_by_decoder_norm:
        rank = rank * W_dec.detach().norm(dim=-1)
    chosen = torch.topk(rank, k, dim=-1, sorted=False).indices
    values = torch.relu(hidden_pre.gather(-1, chosen))
    acts = torch.zeros_like(hidden_pre).scatter(-1, chosen, values)
    return (residual.detach() - acts @ W_dec).pow(2).sum(dim=-1).mean()
