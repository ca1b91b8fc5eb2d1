"""Sparsity terms of a batch of features, each a mean over tokens, dense and of active entries.

`weighted` are features times the norms of their decoder rows, so that shrinking a feature and
growing its row gains nothing (Conerly et al. 2024, "Update on how we train SAEs").

- power: `||s||_p` of each token (the norm, not its p-th power);
- tanh: `sum_i tanh(c s_i)` of each token, close to L0 for large c (Conerly et al. 2025, "Dictionary
  Learning Optimization Techniques", Circuits Updates, January 2025);
- tanh-quad: see `tanh_quad_sparsity`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.precision import sum_dtype
from sae_lens.saes.losses import lp_sparsity, lp_sparsity_of_entries

SparsityLossName = Literal["power", "tanh", "tanh-quad"]
SPARSITY_LOSSES: tuple[str, ...] = get_args(SparsityLossName)


def tanh_quad_sparsity(
    weighted: Float[Tensor, "batch d_sae"], stretch: float, frequency_scale: float
) -> Float[Tensor, ""]:
    """`sum_i q_i (1 + q_i / frequency_scale)` with `q_i` the mean over tokens of `tanh(c s_i)`.

    The quadratic part makes features that fire more often than `frequency_scale` expensive. Idea:
    Rajamanoharan et al. 2025, "Removing High Frequency Latents from JumpReLU SAEs".
    """
    frequency = torch.tanh(stretch * weighted).mean(dim=0, dtype=sum_dtype(weighted))
    return (frequency * (1 + frequency / frequency_scale)).sum()


def l0_loss(
    l0: Float[Tensor, " batch"], coefficient: float, target: float | None = None
) -> Float[Tensor, ""]:
    """`l0`, or with a target T `(2 / T) (l0 - T)^2`, times the coefficient; the mean over tokens.

    The latter makes features cheap below the target and expensive above it.
    """
    if target is None:
        return (coefficient * l0).mean()
    return (coefficient * (2.0 / target) * (l0 - target).pow(2)).mean()


@dataclass(frozen=True)
class SparsityTerm:
    """One of the terms that follow the features' strengths, with its settings.

    Attributes:
        kind: "power", "tanh" or "tanh-quad".
        p: of the power term's norm.
        stretch: c in the tanh terms.
        frequency_scale: firing frequency at which tanh-quad doubles the price.
    """

    kind: SparsityLossName = "power"
    p: float = 1.0
    stretch: float = 4.0
    frequency_scale: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in SPARSITY_LOSSES:
            raise ValueError(
                f"The sparsity loss is {self.kind!r}; allowed are {', '.join(SPARSITY_LOSSES)}."
            )
        if not (self.p > 0 and self.stretch > 0 and self.frequency_scale > 0):
            raise ValueError(
                f"p={self.p}, stretch={self.stretch} and frequency_scale={self.frequency_scale} of "
                "a sparsity loss must be above 0."
            )

    def of(
        self, weighted: Float[Tensor, "batch d_sae"], coefficient: float = 1.0
    ) -> Float[Tensor, ""]:
        """The term, times a coefficient."""
        if self.kind == "tanh-quad":
            return coefficient * tanh_quad_sparsity(weighted, self.stretch, self.frequency_scale)
        if self.kind == "tanh":
            per_token = torch.tanh(self.stretch * weighted).sum(dim=-1, dtype=sum_dtype(weighted))
        else:
            per_token = lp_sparsity(weighted, self.p)
        return (coefficient * per_token).mean()

    def of_entries(
        self, values: Float[Tensor, " nnz"], active: ActiveSet, coefficient: float = 1.0
    ) -> Float[Tensor, ""]:
        """The same of weighted features that have these values at the active entries."""
        if self.kind == "power":
            return (coefficient * lp_sparsity_of_entries(values, active, self.p)).mean()
        squashed = torch.tanh(self.stretch * values)
        if self.kind == "tanh":
            return (coefficient * active.sum_rows(squashed)).mean()
        frequency = active.sum_cols(squashed) / active.shape[0]
        return coefficient * (frequency * (1 + frequency / self.frequency_scale)).sum()

    @property
    def has_sparse_form(self) -> bool:
        """Whether it is a sum over entries; a maximum, p of infinity, is not."""
        return self.p < math.inf or self.kind != "power"


def sparsity_term_of(cfg: Any) -> SparsityTerm:
    """The term that an SAE's config asks for; flat configs know the p-norm alone."""
    return SparsityTerm(
        getattr(cfg, "sparsity_loss", "power"),
        cfg.lp_norm,
        getattr(cfg, "tanh_stretch", 4.0),
        getattr(cfg, "frequency_scale", 0.01),
    )


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
