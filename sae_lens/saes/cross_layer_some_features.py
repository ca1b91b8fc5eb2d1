"""Linear maps of some of a cross-layer transcoder's features, which belong to several layers.

How many of them belong to each layer decides the shapes of the products. On the CPU the host looks.
Elsewhere it would have to wait, and takes all of them at each layer, as if they belonged to it,
leaving out of the sum those that do not; or, when they are more than a layer has, all features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens.saes.dead_features import may_look_at
from sae_lens.saes.several_hooks import SeveralHooks


class SomeCrossLayerFeatures(SeveralHooks):
    """The part of a cross-layer transcoder that maps some of its features."""

    d_sae_of_hook: int
    encoders: Callable[[], Sequence[Tensor]]
    decoders: Callable[[], Sequence[Tensor]]
    _summed: Callable[[Sequence[Tensor]], Tensor]

    def linear_encode_some(
        self, x: Float[Tensor, "... d_in"], features: Int[Tensor, " n"]
    ) -> Float[Tensor, "... n"]:
        """Pre-activations of some features, given in ascending order."""
        if may_look_at(features):
            inputs = x.split(self.d_in_of_hook, dim=-1)
            parts = zip(inputs, self.encoders(), self._by_layer(features), strict=True)
            hidden = torch.cat([xl @ W[:, some] for xl, W, some in parts], -1)
            return hidden + self.b_enc[features]
        if len(features) > self.d_sae_of_hook:
            return self.linear_encode(x).index_select(-1, features)
        hidden = self.b_enc[features]
        inputs = x.split(self.d_in_of_hook, dim=-1)
        for xl, W, (some, are_here) in zip(
            inputs, self.encoders(), self._at_each_layer(features), strict=True
        ):
            hidden = hidden + (xl @ W[:, some]).masked_fill(~are_here, 0.0)
        return hidden

    def linear_decode_some(
        self, acts: Float[Tensor, "... n"], features: Int[Tensor, " n"]
    ) -> Float[Tensor, "... all_layers"]:
        """What some features, given in ascending order, write to all layers."""
        if may_look_at(features):
            by_layer = self._by_layer(features)
            parts = acts.split([len(some) for some in by_layer], dim=-1)
            decoders = zip(parts, self.decoders(), by_layer, strict=True)
            return self._summed([f @ W[some] for f, W, some in decoders])
        if len(features) > self.d_sae_of_hook:
            among_all = acts.new_zeros(*acts.shape[:-1], len(self.b_enc))
            return self.linear_decode(among_all.index_copy(-1, features, acts))
        layers = zip(self.decoders(), self._at_each_layer(features), strict=True)
        return self._summed(
            [acts.masked_fill(~are_here, 0.0) @ W[some] for W, (some, are_here) in layers]
        )

    def _by_layer(self, features: Int[Tensor, " n"]) -> list[Int[Tensor, " n"]]:
        """Ascending features as those of each layer, counted from its first."""
        d = self.d_sae_of_hook
        borders = torch.arange(1, self.n_hooks, device=features.device) * d
        at = torch.searchsorted(features, borders).tolist()
        parts = features.tensor_split(at)
        return [part - layer * d for layer, part in enumerate(parts)]

    def _at_each_layer(
        self, features: Int[Tensor, " n"]
    ) -> list[tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]]:
        """For each layer, all features as if they were its own, and which of them are."""
        d = self.d_sae_of_hook
        return [(features % d, features // d == layer) for layer in range(self.n_hooks)]
