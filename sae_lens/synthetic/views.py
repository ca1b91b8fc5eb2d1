"""The same true features as different architectures see them: at one place, at two, at several.

An SAE reads activations and writes them again. A transcoder reads them where the features have one
set of directions and writes where they have another. A crosscoder reads and writes several places
at once. A cross-layer transcoder reads each feature in one layer only, and writes it to that and
all later ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.synthetic.data import SyntheticData

HOOKS = 2  # of crosscoders and cross-layer transcoders
_SEED = 15_485_863


class ViewedSample(NamedTuple):
    """What is read, what it is made of, and what is to be written if it is something else."""

    activations: Float[Tensor, "batch d_read"]
    features: Float[Tensor, "batch n_features"]
    written: Float[Tensor, "batch d_written"] | None


@dataclass(frozen=True)
class View:
    """Where an architecture finds the features.

    Attributes:
        data: what fires when.
        read: direction of each feature in what is read, zeros where it is not.
        written: the same in what is to be written; None for the same as read.
    """

    data: SyntheticData
    read: Float[Tensor, "n_features d_read"]
    written: Float[Tensor, "n_features d_written"] | None = None

    @property
    def directions(self) -> Float[Tensor, "n_features d_written"]:
        """The directions that decoders should find."""
        return self.read if self.written is None else self.written

    def sample(self, n: int, generator: torch.Generator) -> ViewedSample:
        """Draw `n` samples."""
        features = self.data.sample(n, generator).features
        written = None
        if self.written is not None:
            written = self._activations(features, self.written, generator)
        return ViewedSample(self._activations(features, self.read, generator), features, written)

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Tensor]:
        """Training batches without end: what is read, beside it what is to be written if it is not.

        Each is [batch_size, d_read] or [batch_size, d_read + d_written].
        """
        generator = self.data.generator_of_batches(seed)
        while True:
            sample = self.sample(batch_size, generator)
            parts = (sample.activations, sample.written)
            yield torch.cat([part for part in parts if part is not None], dim=-1)

    def _activations(
        self, features: Tensor, directions: Tensor, generator: torch.Generator
    ) -> Tensor:
        noise = torch.randn(len(features), directions.shape[1], generator=generator)
        return features @ directions + self.data.cfg.noise * noise


def view_of(kind: str, data: SyntheticData) -> View:
    """How an architecture of a kind sees the features of `data`.

    Args:
        kind: "sae", "transcoder", "crosscoder" or "cross_layer_transcoder".
        data: the features; `data.directions` are those of the first place that is read.
    """
    generator = torch.Generator().manual_seed(_SEED + data.cfg.seed)

    def other_directions() -> Tensor:
        directions = torch.randn(data.directions.shape, generator=generator)
        return directions / directions.norm(dim=-1, keepdim=True)

    if kind == "sae":
        return View(data, data.directions)
    if kind == "transcoder":
        return View(data, data.directions, other_directions())
    if kind == "crosscoder":
        places = [data.directions, *(other_directions() for _ in range(HOOKS - 1))]
        return View(data, torch.cat(places, dim=-1))
    if kind == "cross_layer_transcoder":
        layer_of = torch.arange(len(data.directions)) % HOOKS
        layers = range(HOOKS)
        read = [data.directions * (layer_of == layer)[:, None] for layer in layers]
        written = [other_directions() * (layer_of <= layer)[:, None] for layer in layers]
        return View(data, torch.cat(read, dim=-1), torch.cat(written, dim=-1))
    raise ValueError(f"Unknown kind {kind!r} of architecture.")
