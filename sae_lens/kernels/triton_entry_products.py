"""CUDA form of `entry_products`: one dot product of two gathered rows per entry, in Triton.

G and W have contiguous rows. Sums are taken in float32, or in float64 for float64 tensors.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false
# Triton compiles what the annotations say, so they are not postponed here.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ENTRIES = 16
_BLOCK = 64


@triton.jit
def _kernel(
    rows: Any,
    cols: Any,
    G: Any,
    W: Any,
    out: Any,
    n_entries: Any,
    d: Any,
    in_double: tl.constexpr,
    n_together: tl.constexpr,
    block: tl.constexpr,
) -> None:
    entries = tl.program_id(0) * n_together + tl.arange(0, n_together)
    inside = entries < n_entries
    G_rows = tl.load(rows + entries, mask=inside, other=0).to(tl.int64) * d
    W_rows = tl.load(cols + entries, mask=inside, other=0).to(tl.int64) * d
    dtype: tl.constexpr = tl.float64 if in_double else tl.float32
    total = tl.zeros((n_together,), dtype=dtype)
    for start in range(0, d, block):
        columns = start + tl.arange(0, block)
        mask = inside[:, None] & (columns < d)[None, :]
        from_G = tl.load(G + G_rows[:, None] + columns[None, :], mask=mask, other=0.0)
        from_W = tl.load(W + W_rows[:, None] + columns[None, :], mask=mask, other=0.0)
        total += tl.sum(from_G.to(dtype) * from_W.to(dtype), axis=1)
    tl.store(out + entries, total.to(out.dtype.element_ty), mask=inside)


def entry_products(G: Tensor, W: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """`(G @ W.T)[rows, cols]`, [nnz]."""
    out = G.new_empty(rows.numel())
    if rows.numel():
        _kernel[(triton.cdiv(rows.numel(), _ENTRIES),)](
            rows,
            cols,
            G.contiguous(),
            W.contiguous(),
            out,
            rows.numel(),
            G.shape[1],
            in_double=G.dtype == torch.float64,
            n_together=_ENTRIES,
            block=_BLOCK,
        )
    return out
