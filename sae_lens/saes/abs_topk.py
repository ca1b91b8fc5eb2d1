"""AbsTopK SAE: keep the k pre-activations that are largest by absolute value, with their signs.

    h = (x - b_dec) W_enc + b_enc,  f = h where |h| is among the k largest, zero elsewhere

Zhu et al. 2025, "AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features"
(arXiv:2510.00404): a feature and its opposite share one direction. Features may be
negative. Trained like topk; the auxiliary loss selects among dead features by absolute value too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.kernels.active_entries import ActiveEntries
from sae_lens.kernels.top_entries import top_entries
from sae_lens.registry import register_sae_class, register_sae_training_class
from sae_lens.saes.activation_fns import TopK
from sae_lens.saes.topk import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig


@dataclass(kw_only=True)
class AbsTopKSAEConfig(TopKSAEConfig):
    """Config of an `AbsTopKSAE`."""

    architecture: str = "abstopk"


@dataclass(kw_only=True)
class AbsTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """Config of an `AbsTopKTrainingSAE`: that of topk."""

    architecture: str = "abstopk"


class AbsTopK(TopK):
    """Keeps the `k` entries that are largest by absolute value along the last dimension."""

    def forward(self, x: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        """Select along the last dimension; signs are kept."""
        indices = torch.topk(x.abs(), k=self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(x).scatter_(-1, indices, x.gather(-1, indices))


class AbsTopKSAE(TopKSAE):
    """See the module's text."""

    architecture = "abstopk"

    def _make_activation_fn(self) -> nn.Module:
        return AbsTopK(self.cfg.activation_fn_kwargs["k"])

    def selection_rank(self, hidden_pre: Tensor) -> Tensor:
        """Absolute values."""
        return hidden_pre.abs()


class AbsTopKTrainingSAE(TopKTrainingSAE, AbsTopKSAE):
    """See the module's text."""

    architecture = "abstopk"

    def selection_rank(self, hidden_pre: Tensor) -> Tensor:
        """Absolute values."""
        return hidden_pre.abs()

    # -- the sparse form --------------------------------------------------------------------------

    def has_sparse_form(self) -> bool:
        """With this architecture's own selection."""
        return type(self.activation_fn) is AbsTopK

    def selected_features(self, hidden_pre: Tensor) -> Tensor:
        """The pre-activations, with their signs."""
        return hidden_pre

    def _find_entries(self, centred_in: Tensor, scale: Tensor | None) -> ActiveEntries:
        return top_entries(
            centred_in,
            self.W_enc,
            self.b_enc,
            scale,
            k=self._selection.k,
            over_batch=False,
            workspace=self._workspace,
            by_magnitude=True,
        )


register_sae_class("abstopk", AbsTopKSAE, AbsTopKSAEConfig)
register_sae_training_class("abstopk", AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig)
