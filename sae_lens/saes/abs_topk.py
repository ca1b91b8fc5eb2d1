"""AbsTopK SAE: keep the k pre-activations that are largest by absolute value, with their signs.

    h = (x - b_dec) W_enc + b_enc,  f = h where |h| is among the k largest, zero elsewhere

Zhu et al. 2025, "AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features"
(arXiv:2510.00404): a feature and its opposite share one direction. Features may be negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.registry import register_sae_class
from sae_lens.saes.activation_fns import TopK
from sae_lens.saes.topk import TopKSAE, TopKSAEConfig


@dataclass(kw_only=True)
class AbsTopKSAEConfig(TopKSAEConfig):
    """Config of an `AbsTopKSAE`."""

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


register_sae_class("abstopk", AbsTopKSAE, AbsTopKSAEConfig)
