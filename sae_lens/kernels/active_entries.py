"""Which entries of the encoder's product exceed a threshold, and their values.

The product is taken in pieces of columns that stay in the processor's cache while they are
searched, so that a [batch, d_sae] matrix is never held.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens.kernels import encoder_product
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.sorting import stable_order
from sae_lens.kernels.workspace import Workspace

# 8 MiB of float32: measured no slower than the whole product at once, at 1024 x 12288.
_ELEMENTS_PER_PIECE = 1 << 21


class ActiveEntries(NamedTuple):
    """Positions in the pre-activations, and the values there (no gradient)."""

    active: ActiveSet
    hidden: Float[Tensor, " nnz"]


def reference(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"] | None,
    lower: Float[Tensor, " d_sae"],
    workspace: Workspace,
) -> ActiveEntries:
    """Entries of `x @ W + bias` that are not at or below `lower` (so NaN counts)."""
    hidden = encoder_product.reference(x, W, bias, workspace).to(x.dtype)
    rows, cols = torch.nonzero(~(hidden <= lower), as_tuple=True)
    return ActiveEntries(ActiveSet(rows, cols, hidden.shape), hidden[rows, cols])


def active_entries(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"] | None,
    lower: Float[Tensor, " d_sae"],
    workspace: Workspace,
) -> ActiveEntries:
    """As `reference`, piece by piece. The bias is added where it matters only.

    `product + bias > 0` holds exactly where `product > -bias` does; with another `lower` the two
    sides may differ by a rounding error at the border.
    """
    if bias is not None:
        lower = lower - bias
    n_rows, n_cols = x.shape[0], W.shape[1]
    width = max(1, _ELEMENTS_PER_PIECE // max(n_rows, 1))
    rows, cols, hidden = [], [], []
    for start in range(0, n_cols, width):
        piece = slice(start, min(start + width, n_cols))
        product = encoder_product.encoder_product(x, W[:, piece], None, workspace)
        mask = workspace.scratch(tuple(product.shape), torch.bool, x.device, "mask")
        torch.le(product, lower[piece], out=mask)
        flat = flat_nonzero(mask.logical_not_())
        hidden.append(product.view(-1).index_select(0, flat).to(x.dtype))
        rows.append(flat // product.shape[1])
        cols.append(flat.sub_(rows[-1] * product.shape[1]).add_(start))
    row, col, value = torch.cat(rows), torch.cat(cols), torch.cat(hidden)
    if len(rows) > 1:
        order = stable_order(row, n_rows)
        row, col, value = (each.index_select(0, order) for each in (row, col, value))
    if bias is not None:
        value = value + bias.index_select(0, col)
    return ActiveEntries(ActiveSet(row, col, torch.Size((n_rows, n_cols))), value)


def flat_nonzero(mask: Bool[Tensor, "..."]) -> Int[Tensor, " n"]:
    """Indices into the flattened mask. On CPU by numpy, which is several times faster here."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero().squeeze(1)
