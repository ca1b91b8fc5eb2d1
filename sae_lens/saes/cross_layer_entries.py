"""Active entries of several layers: as one set, and the largest of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens.kernels.active_entries import ActiveEntries
from sae_lens.kernels.active_set import ActiveSet


class LayeredActiveSet(ActiveSet):
    """The active entries of all layers, sorted by token.

    Args:
        parts: those of each layer, of shape [batch, features of a layer].

    Attributes:
        order: the place among all layers' entries, one layer after the other, of each entry.
    """

    def __init__(self, parts: list[ActiveSet]):
        self.parts = parts
        n_rows, d = parts[0].shape
        rows = torch.cat([part.rows for part in parts])
        cols = torch.cat([part.cols + layer * d for layer, part in enumerate(parts)])
        self.order = torch.argsort(rows, stable=True)
        shape = torch.Size((n_rows, d * len(parts)))
        counts = [part.count for part in parts if part.count is not None]
        count = torch.stack(counts).sum() if counts else None
        super().__init__(rows[self.order], cols[self.order], shape, count)

    @property
    def is_incomplete(self) -> Bool[Tensor, ""] | None:
        """Whether there was no room for all entries of some layer; None where there always is."""
        parts = [part.is_incomplete for part in self.parts]
        known = [part for part in parts if part is not None]
        return torch.stack(known).any() if known else None

    def by_layer(self, values: Float[Tensor, "sets nnz"]) -> tuple[Float[Tensor, "sets n"], ...]:
        """Values at all entries as those of each layer (differentiable)."""
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(len(self.order), device=place.device)
        return values[:, place].split([len(part) for part in self.parts], dim=1)


def largest_of_all(
    found: list[ActiveEntries], scales: Sequence[Tensor | None], n_kept: int
) -> list[ActiveEntries]:
    """The `n_kept` entries of highest rank among those of all layers; by `hidden * scale`."""
    if sum(len(part.active) for part in found) <= n_kept:
        return found
    kept = []
    for part, mask in zip(found, are_among_largest(found, scales, n_kept), strict=True):
        active = part.active
        fewer = ActiveSet(active.rows[mask], active.cols[mask], active.shape)
        kept.append(ActiveEntries(fewer, part.hidden[mask]))
    return kept


def are_among_largest(
    found: list[ActiveEntries], scales: Sequence[Tensor | None], n_kept: int
) -> list[Bool[Tensor, " n"]]:
    """For each layer, which of its entries are among the `n_kept` largest of all, and positive."""
    ranks = [
        part.hidden if scale is None else part.hidden * scale.index_select(0, part.active.cols)
        for part, scale in zip(found, scales, strict=True)
    ]
    rank = torch.cat(ranks)
    largest = rank.topk(min(n_kept, len(rank)), sorted=False).indices
    are_kept = torch.zeros_like(rank, dtype=torch.bool).index_fill(0, largest, True)
    are_kept &= ~(rank <= 0)  # what is no number stays, to be noticed
    return list(are_kept.split([len(r) for r in ranks]))


def with_counts(
    found: list[ActiveEntries], are_kept: list[Bool[Tensor, " n"]], rooms: list[int], most: int
) -> list[ActiveEntries]:
    """The entries, of which some are kept, with a count of these for each layer.

    A layer that keeps all it had room for might have more, unless it had room for `most`; the count
    is then one more than the room.
    """
    counted = []
    for part, mask, room in zip(found, are_kept, rooms, strict=True):
        n = mask.sum()
        if room < most:
            n = n + (n == room)
        rows, cols, shape = part.active.rows, part.active.cols, part.active.shape
        counted.append(ActiveEntries(ActiveSet(rows, cols, shape, n), part.hidden))
    return counted
