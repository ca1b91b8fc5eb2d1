"""CUDA form of `sparse_decode` and `weight_gradient`: weighted sums of gathered rows, in Triton.

    out[i] = sum over entries e of row i: values[e] * W[indices[e]]

Offsets, indices and values describe compressed rows. W and out may have any strides; sums are taken
in float32, or in float64 for float64 tensors. One program writes one block of one row of `out`, so
that the order of additions is fixed and there are no atomic operations.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false
# Triton compiles what the annotations say, so they are not postponed here.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128


@triton.jit
def _kernel(
    offsets: Any,
    indices: Any,
    values: Any,
    W: Any,
    out: Any,
    n_columns: Any,
    W_row_stride: Any,
    W_column_stride: Any,
    out_row_stride: Any,
    out_column_stride: Any,
    accumulate: tl.constexpr,
    in_double: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < n_columns
    targets = out + row * out_row_stride + columns * out_column_stride
    dtype: tl.constexpr = tl.float64 if in_double else tl.float32
    if accumulate:
        total = tl.load(targets, mask=inside, other=0.0).to(dtype)
    else:
        total = tl.zeros((block,), dtype=dtype)
    entry = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    while entry < end:
        source = tl.load(indices + entry) * W_row_stride
        gathered = tl.load(W + source + columns * W_column_stride, mask=inside, other=0.0)
        total += tl.load(values + entry).to(dtype) * gathered.to(dtype)
        entry += 1
    tl.store(targets, total.to(out.dtype.element_ty), mask=inside)


def gather_sum(
    offsets: Tensor,
    indices: Tensor,
    values: Tensor,
    W: Tensor,
    out: Tensor,
    accumulate: bool = False,
) -> Tensor:
    """Fill (or add to) `out`, [n_rows, d]; see the module's text."""
    n_rows, d = out.shape
    if out.numel():
        _kernel[(n_rows, triton.cdiv(d, _BLOCK))](
            offsets,
            indices,
            values.contiguous(),
            W,
            out,
            d,
            *W.stride(),
            *out.stride(),
            accumulate=accumulate,
            in_double=out.dtype == torch.float64,
            block=_BLOCK,
        )
    return out
