"""The two linear maps of an SAE, and what else has to know how its matrices are laid out.

Architectures whose maps have a structure (blocks for layers, norms by hook) say so here, and the
formulas in the other files stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_lens.saes.weights import fold_decoder_norms_, row_norms
from sae_lens.whitening import Whitening, undo_directions, undo_parts


class LinearMaps(nn.Module):
    """The part of an SAE that multiplies with its matrices."""

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    def linear_encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Pre-activations of a processed input."""
        return x @ self.W_enc + self.b_enc

    def linear_decode(self, acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_out"]:
        """What features sum up to, without bias."""
        return acts @ self.W_dec

    def linear_encode_some(
        self, x: Float[Tensor, "batch d_in"], features: Int[Tensor, " n"]
    ) -> Float[Tensor, "batch n"]:
        """Pre-activations of some features, given in ascending order."""
        return x @ self.W_enc[:, features] + self.b_enc[features]

    def linear_decode_some(
        self, acts: Float[Tensor, "batch n"], features: Int[Tensor, " n"]
    ) -> Float[Tensor, "batch d_out"]:
        """What some features, given in ascending order, sum up to."""
        return acts @ self.W_dec[features]

    def decoder_norms(self, features: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """How much a unit of each feature (or of some) writes: the L2 norm of its decoder row."""
        return row_norms(self.W_dec if features is None else self.W_dec[features])

    @torch.no_grad()
    def divide_decoder_(
        self, norms: Float[Tensor, " d_sae"], *per_feature: Float[Tensor, " d_sae"]
    ) -> None:
        """Divide the decoder by `norms` and multiply encoder and `per_feature`, in place."""
        fold_decoder_norms_(norms, self.W_enc.data, self.W_dec.data, *per_feature)

    @torch.no_grad()
    def map_encoder_(self, maps: Sequence[Whitening]) -> Float[Tensor, " d_sae"]:
        """Let the encoder apply a map to each activation in a row, but for the mean, in place.

        Returns:
            what the means add to pre-activations.
        """
        blocks = self.W_enc.data.split([len(part.mean) for part in maps])
        mapped = [part.matrix @ block.float() for part, block in zip(maps, blocks, strict=True)]
        self.W_enc.copy_(torch.cat(mapped))
        means = [part.mean @ block for part, block in zip(maps, mapped, strict=True)]
        return torch.stack(means).sum(dim=0)

    @torch.no_grad()
    def map_decoder_(self, maps: Sequence[Whitening]) -> None:
        """Let decoder and bias undo the map of each activation in a row, in place."""
        self.W_dec.copy_(undo_directions(maps, self.W_dec.data))
        self.b_dec.copy_(undo_parts(maps, self.b_dec.data))
