"""The largest entries of the encoder's product, per token or over the whole batch, without sorting.

With the columns dealt into groups, the k-th largest of the groups' maxima is a lower bound for the
k-th largest entry: each of those k groups holds an entry at least that large. One reading for the
maxima and one for the few entries above the bound replace a selection over all of them. Exact;
which of several equal entries is kept at the margin is not defined, as in `torch.topk`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.kernels import encoder_product
from sae_lens.kernels.active_entries import ActiveEntries, flat_nonzero
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.workspace import Workspace

_GROUP_SIZE = 16
# Larger products are searched in pieces: 256 MiB of float32.
_ELEMENTS_PER_PIECE = 1 << 26


def reference(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"],
    scale: Float[Tensor, " d_sae"] | None,
    k: int,
    over_batch: bool,
    workspace: Workspace,
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
    """
    hidden = encoder_product.reference(x, W, bias, workspace).to(x.dtype)
    scaled = hidden if scale is None else hidden * scale
    if over_batch:
        top = scaled.relu().flatten().topk(min(k, scaled.numel()))
        flat = top.indices[top.values > 0].sort().values
    else:
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        cols = scaled.topk(k, dim=-1).indices.sort(dim=-1).values
        flat = (rows * scaled.shape[1] + cols).flatten()
    active = ActiveSet(flat // scaled.shape[1], flat % scaled.shape[1], scaled.shape)
    return ActiveEntries(active, hidden[active.rows, active.cols])


def top_entries(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"],
    scale: Float[Tensor, " d_sae"] | None,
    k: int,
    over_batch: bool,
    workspace: Workspace,
) -> ActiveEntries:
    """As `reference`. A product too large for memory is searched in pieces of columns."""
    if x.device.type != "cpu":
        return _fixed_number_of_entries(x, W, bias, scale, k, over_batch, workspace)
    n_rows, n_cols = x.shape[0], W.shape[1]
    width = max(_GROUP_SIZE, _ELEMENTS_PER_PIECE // max(n_rows, 1))
    rows, cols, values, ranks = [], [], [], []
    for start in range(0, n_cols, width):
        piece = slice(start, min(start + width, n_cols))
        hidden = encoder_product.encoder_product(x, W[:, piece], bias[piece], workspace)
        scaled = hidden if scale is None else hidden * scale[piece]
        flat = _above_bound(scaled, min(k, hidden.numel()), over_batch, workspace)
        row = flat // hidden.shape[1]
        rows.append(row)
        cols.append(flat - row * hidden.shape[1] + start)
        values.append(hidden.reshape(-1).index_select(0, flat).to(x.dtype))
        ranks.append(scaled.reshape(-1).index_select(0, flat))
    row, col = torch.cat(rows), torch.cat(cols)
    value, rank = torch.cat(values), torch.cat(ranks)
    if len(rows) > 1:
        row, order = torch.sort(row, stable=True)
        col, value, rank = col[order], value[order], rank[order]
    kept = _batch_top(rank, k) if over_batch else _row_top(row, rank, n_rows, k)
    active = ActiveSet(row[kept], col[kept], torch.Size((n_rows, n_cols)))
    return ActiveEntries(active, value[kept])


def _fixed_number_of_entries(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"],
    scale: Float[Tensor, " d_sae"] | None,
    k: int,
    over_batch: bool,
    workspace: Workspace,
) -> ActiveEntries:
    """Always k entries, so that the host need not wait to learn how many.

    Over the batch, those that are not positive are left for relu to make zeros of.
    """
    hidden = encoder_product.encoder_product(x, W, bias, workspace)
    scaled = hidden if scale is None else hidden * scale
    n_cols = scaled.shape[1]
    if over_batch:
        flat = scaled.flatten().topk(min(k, scaled.numel()), sorted=False).indices.sort().values
    else:
        starts = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * n_cols
        flat = (scaled.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values + starts).flatten()
    active = ActiveSet(flat // n_cols, flat % n_cols, scaled.shape)
    return ActiveEntries(active, hidden.reshape(-1).index_select(0, flat).to(x.dtype))


def _above_bound(
    scaled: Float[Tensor, "batch width"], k: int, over_batch: bool, workspace: Workspace
) -> Int[Tensor, " n"]:
    """Flat indices of a superset of the k largest entries, of each row or of all."""
    maxima = _group_maxima(scaled)
    if over_batch:
        maxima = maxima.reshape(1, -1)
    else:
        k = min(k, scaled.shape[1])
    if maxima.shape[1] >= k:
        bound = maxima.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    else:
        bound = maxima.new_full((maxima.shape[0], 1), -torch.inf)
    mask = workspace.scratch(tuple(scaled.shape), torch.bool, scaled.device, "mask")
    if over_batch:
        # only positive entries count: relu has made zeros of the others
        torch.lt(scaled, bound.clamp(min=torch.finfo(scaled.dtype).tiny), out=mask)
    else:
        torch.lt(scaled, bound, out=mask)
    return flat_nonzero(mask.logical_not_())


def _group_maxima(scaled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch groups"]:
    n_groups = scaled.shape[1] // _GROUP_SIZE
    if n_groups == 0:
        return scaled
    grouped = scaled[:, : n_groups * _GROUP_SIZE].unflatten(1, (_GROUP_SIZE, n_groups)).amax(1)
    rest = scaled[:, n_groups * _GROUP_SIZE :]
    return torch.cat((grouped, rest), dim=1) if rest.shape[1] else grouped


def _batch_top(rank: Float[Tensor, " n"], k: int) -> Tensor:
    """Which candidates are the k largest of the batch."""
    if rank.numel() <= k:
        return torch.ones_like(rank, dtype=torch.bool)
    kept = torch.zeros_like(rank, dtype=torch.bool)
    kept[rank.topk(k, sorted=False).indices] = True
    return kept


def _row_top(row: Int[Tensor, " n"], rank: Float[Tensor, " n"], n_rows: int, k: int) -> Tensor:
    """Which candidates are the k largest of their row; each row has at least k, in order."""
    counts = torch.bincount(row, minlength=n_rows)
    widest = int(counts.max()) if n_rows else 0
    if widest <= k:
        return torch.ones_like(row, dtype=torch.bool)
    place = torch.arange(row.numel(), device=row.device) - (counts.cumsum(0) - counts)[row]
    padded = rank.new_full((n_rows, widest), -torch.inf)
    padded[row, place] = rank
    chosen = torch.zeros_like(padded, dtype=torch.bool)
    chosen.scatter_(1, padded.topk(k, dim=-1, sorted=False).indices, True)
    return chosen[row, place]
