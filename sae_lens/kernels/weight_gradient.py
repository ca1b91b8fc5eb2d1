"""Gradients of the weights from active entries: `S.T @ G` (decoder) and `X.T @ S` (encoder)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.kernels import compact
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.dispatch import uses_triton


def reference(
    values: Float[Tensor, " nnz"],
    active: ActiveSet,
    G: Float[Tensor, "batch d_out"],
    out: Float[Tensor, "d_sae d_out"],
    accumulate: bool = False,
) -> Float[Tensor, "d_sae d_out"]:
    """`S.T @ G` into (or added to) `out`, with S made dense."""
    return out.copy_(active.dense(values).T @ G + (out if accumulate else 0.0))


def weight_gradient(
    values: Float[Tensor, " nnz"],
    active: ActiveSet,
    G: Float[Tensor, "batch d_out"],
    out: Float[Tensor, "d_sae d_out"],
    accumulate: bool = False,
) -> Float[Tensor, "d_sae d_out"]:
    """`S.T @ G` into (or added to) `out`.

    `out` may be row-major, or column-major: then a row-major `out.T` receives `G.T @ S`, which is
    how an encoder's gradient is laid out like the encoder.
    """
    if uses_triton(values):
        from sae_lens.kernels.triton_gather_sum import gather_sum

        by_column = values[active.column_order]
        return gather_sum(active.col_offsets, active.rows_by_column, by_column, G, out, accumulate)
    if compact.is_needed(out):
        features, among = compact.compacted(active)
        rows = out.new_empty(len(features), out.shape[1], dtype=torch.float32)
        weight_gradient(values.float(), among, G.float(), rows)
        return compact.put_rows(features, rows, out, accumulate)
    transposed = active.transposed_csr(values)
    if not out.is_contiguous():
        # MKL wants both dense operands in one layout
        G = G.t().contiguous().t()
    # with beta=0 whatever `out` held before is not read
    return torch.addmm(out, transposed, G, beta=int(accumulate), out=out)
