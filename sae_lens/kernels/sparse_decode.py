"""Sparse features times a decoder: `S @ W`, with S in compressed rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.kernels import compact
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.dispatch import uses_triton


def reference(
    values: Float[Tensor, " nnz"], active: ActiveSet, W: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "batch d_out"]:
    """`S @ W` with S made dense."""
    return active.dense(values) @ W


def decode_together(
    values: Float[Tensor, "sets nnz"], active: ActiveSet, W: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "sets batch d_out"]:
    """`S @ W` for several S with the same entries.

    On CPU one token after the other, so that rows of W are still in the cache when the second S
    asks for them.
    """
    n_sets, n_rows = len(values), active.shape[0]
    if n_sets == 1 or uses_triton(values):
        recons = sparse_decode(values.flatten(), active.stacked(n_sets), W)
        return recons.view(n_sets, n_rows, W.shape[1])
    order, interleaved = active.interleaved(n_sets)
    recons = sparse_decode(values.flatten().index_select(0, order), interleaved, W)
    return recons.view(n_rows, n_sets, W.shape[1]).transpose(0, 1)


def sparse_decode(
    values: Float[Tensor, " nnz"], active: ActiveSet, W: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, "batch d_out"]:
    """`S @ W` as a weighted sum of rows of W for each token (measured faster than MKL's CSR)."""
    if uses_triton(values):
        from sae_lens.kernels.triton_gather_sum import gather_sum

        out = values.new_empty(active.shape[0], W.shape[1])
        return gather_sum(active.row_offsets, active.cols, values, W, out)
    if compact.is_needed(W):
        features, among = compact.compacted(active)
        return sparse_decode(values.float(), among, W[features].float()).to(W.dtype)
    return torch.nn.functional.embedding_bag(
        active.cols,
        W,
        active.row_offsets,
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )
