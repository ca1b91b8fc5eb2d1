"""The largest entries of the encoder's product, per token or over the whole batch, without sorting.

With the columns dealt into groups, the k-th largest of the groups' maxima is a lower bound for the
k-th largest entry: each of those k groups holds an entry at least that large. One reading for the
maxima and one for the few entries above the bound replace a selection over all of them. Exact;
which of several equal entries is kept at the margin is not defined, as in `torch.topk`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.kernels import encoder_product
from sae_lens.kernels.active_entries import ActiveEntries, flat_nonzero
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.sorting import stable_order
from sae_lens.kernels.workspace import Workspace

_GROUP_SIZE = 64
# Larger products are searched in pieces: 256 MiB of float32.
_ELEMENTS_PER_PIECE = 1 << 26


@dataclass(frozen=True)
class _OfEachRow:
    """The k largest entries of every row."""

    k: int

    def exactly(self, rank: Float[Tensor, "batch width"]) -> Int[Tensor, " n"]:
        """Their flat indices, ascending; how many there are does not depend on the values."""
        cols = rank.topk(self.k, dim=-1, sorted=False).indices.sort(dim=-1).values
        starts = torch.arange(len(rank), device=rank.device).unsqueeze(1) * rank.shape[1]
        return (cols + starts).flatten()

    def bound(self, rank: Float[Tensor, "batch width"]) -> Float[Tensor, "batch 1"]:
        """At or above this are at least the k largest entries of each row."""
        k = min(self.k, rank.shape[1])
        maxima = _group_maxima(rank, k)
        return maxima.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)

    def among(
        self, rank: Float[Tensor, " n"], row: Int[Tensor, " n"], n_rows: int
    ) -> Int[Tensor, " n_kept"] | None:
        """Which candidates they are, by row; each row has at least k. None for all of them."""
        counts = torch.bincount(row, minlength=n_rows)
        widest = int(counts.max()) if n_rows else 0
        if widest <= self.k:
            return None
        place = torch.arange(len(row)).sub_((counts.cumsum(0) - counts).index_select(0, row))
        place.add_(row, alpha=widest)
        padded = rank.new_full((n_rows, widest), -torch.inf)
        padded.view(-1)[place] = rank
        chosen = torch.zeros_like(padded, dtype=torch.bool)
        chosen.scatter_(1, padded.topk(self.k, dim=-1, sorted=False).indices, True)
        return flat_nonzero(chosen.view(-1).index_select(0, place))


@dataclass(frozen=True)
class _OfTheBatch:
    """The k largest entries of all rows together, of those that are positive."""

    k: int

    def exactly(self, rank: Float[Tensor, "batch width"]) -> Int[Tensor, " n"]:
        """Their flat indices, ascending; always k, and some not positive where too few are."""
        k = min(self.k, rank.numel())
        return rank.flatten().topk(k, sorted=False).indices.sort().values

    def bound(self, rank: Float[Tensor, "batch width"]) -> Float[Tensor, "1 1"]:
        """At or above this are at least the k largest positive entries."""
        k = min(self.k, rank.numel())
        maxima = _group_maxima(rank, k / max(len(rank), 1)).flatten()
        least = torch.finfo(rank.dtype).tiny
        return maxima.topk(k, sorted=False).values.amin().clamp(min=least).view(1, 1)

    def among(
        self, rank: Float[Tensor, " n"], row: Int[Tensor, " n"], n_rows: int
    ) -> Int[Tensor, " n_kept"] | None:
        """Which candidates they are, in their order; None for all of them."""
        if rank.numel() <= self.k:
            return None
        return rank.topk(self.k, sorted=False).indices.sort().values


def reference(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"],
    scale: Float[Tensor, " d_sae"] | None,
    k: int,
    over_batch: bool,
    workspace: Workspace,
    by_magnitude: bool = False,
) -> ActiveEntries:
    """Largest entries of `hidden * scale`, and `hidden = x @ W + bias` there.

    Args:
        x: processed activations.
        W: the encoder.
        bias: its bias.
        scale: what selection weighs each feature with; None for nothing.
        k: entries per token; or, with `over_batch`, in all.
        over_batch: select over the whole batch, and positive entries only.
        workspace: scratch memory.
        by_magnitude: select by absolute value.
    """
    hidden = encoder_product.reference(x, W, bias, workspace).to(x.dtype)
    rank = _rank(hidden, scale, by_magnitude)
    flat = _selection(k, over_batch).exactly(rank)
    if over_batch:
        flat = flat[rank.flatten()[flat] > 0]
    active = ActiveSet(flat // hidden.shape[1], flat % hidden.shape[1], hidden.shape)
    return ActiveEntries(active, hidden[active.rows, active.cols])


def top_entries(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"],
    scale: Float[Tensor, " d_sae"] | None,
    k: int,
    over_batch: bool,
    workspace: Workspace,
    by_magnitude: bool = False,
) -> ActiveEntries:
    """As `reference`.

    On CPU a product too large for memory is searched in pieces of columns. Elsewhere the host does
    not wait to learn how many entries there are: there are always k, and over the batch those that
    are not positive are left for relu to make zeros of.
    """
    selection = _selection(k, over_batch)
    n_rows, n_cols = x.shape[0], W.shape[1]
    if x.device.type != "cpu":
        hidden = encoder_product.encoder_product(x, W, bias, workspace)
        flat = selection.exactly(_rank(hidden, scale, by_magnitude))
        active = ActiveSet(flat // n_cols, flat % n_cols, hidden.shape)
        return ActiveEntries(active, hidden.reshape(-1).index_select(0, flat).to(x.dtype))
    width = max(_GROUP_SIZE, _ELEMENTS_PER_PIECE // max(n_rows, 1))
    rows, cols, values, ranks = [], [], [], []
    for start in range(0, n_cols, width):
        piece = slice(start, min(start + width, n_cols))
        hidden = encoder_product.encoder_product(x, W[:, piece], bias[piece], workspace)
        weight, out = None if scale is None else scale[piece], None
        if by_magnitude or weight is not None:
            out = workspace.scratch(tuple(hidden.shape), hidden.dtype, hidden.device, "rank")
        rank = _rank(hidden, weight, by_magnitude, out)
        mask = workspace.scratch(tuple(rank.shape), torch.bool, rank.device, "mask")
        torch.lt(rank, selection.bound(rank), out=mask)  # what is no number is not less
        flat = flat_nonzero(mask.logical_not_())
        values.append(hidden.reshape(-1).index_select(0, flat).to(x.dtype))
        ranks.append(rank.reshape(-1).index_select(0, flat))
        rows.append(flat // hidden.shape[1])
        cols.append(flat.sub_(rows[-1] * hidden.shape[1]).add_(start))
    row, col = torch.cat(rows), torch.cat(cols)
    value, rank = torch.cat(values), torch.cat(ranks)
    if len(rows) > 1:
        order = stable_order(row, n_rows)
        row, col, value, rank = (each[order] for each in (row, col, value, rank))
    kept = selection.among(rank, row, n_rows)
    if kept is not None:
        row, col, value = (each.index_select(0, kept) for each in (row, col, value))
    return ActiveEntries(ActiveSet(row, col, torch.Size((n_rows, n_cols))), value)


def _selection(k: int, over_batch: bool) -> _OfEachRow | _OfTheBatch:
    return _OfTheBatch(k) if over_batch else _OfEachRow(k)


def _rank(
    hidden: Float[Tensor, "batch width"],
    scale: Float[Tensor, " width"] | None,
    by_magnitude: bool,
    out: Float[Tensor, "batch width"] | None = None,
) -> Float[Tensor, "batch width"]:
    """By what entries are selected; in `out` where it is not `hidden` itself."""
    if by_magnitude:
        hidden = torch.abs(hidden, out=out)
    return hidden if scale is None else torch.mul(hidden, scale, out=out)


def _group_maxima(
    rank: Float[Tensor, "batch width"], k_per_row: float
) -> Float[Tensor, "batch groups"]:
    """The largest entries of groups of columns, of which there are at least k if possible."""
    width = rank.shape[1]
    size = min(_GROUP_SIZE, int(width / max(3 * k_per_row, 1)))
    if size <= 1:
        return rank
    n_groups = width // size
    grouped = rank[:, : n_groups * size].unflatten(1, (size, n_groups)).amax(1)
    rest = rank[:, n_groups * size :]
    return torch.cat((grouped, rest), dim=1) if rest.shape[1] else grouped
