"""Gradient with respect to features, at active entries only: `(G @ W.T)[rows, cols]`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.kernels import compact
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.dispatch import uses_triton


def reference(
    G: Float[Tensor, "batch d_out"], W: Float[Tensor, "d_sae d_out"], active: ActiveSet
) -> Float[Tensor, " nnz"]:
    """The whole product, of which the entries are taken."""
    return (G @ W.T)[active.rows, active.cols]


def entry_products(
    G: Float[Tensor, "batch d_out"], W: Float[Tensor, "d_sae d_out"], active: ActiveSet
) -> Float[Tensor, " nnz"]:
    """One dot product per entry."""
    if uses_triton(G):
        from sae_lens.kernels import triton_entry_products

        return triton_entry_products.entry_products(G, W, active.rows, active.cols)
    if compact.is_needed(W):
        features, among = compact.compacted(active)
        return entry_products(G.float(), W[features].float(), among).to(G.dtype)
    if active.shape[0] > active.shape[1]:
        pattern = active.csr(G.new_zeros(len(active)))
        return torch.sparse.sampled_addmm(pattern, G.contiguous(), W.t(), beta=0.0).values()
    # By feature, each row of W is read once and rows of G, the smaller matrix, again and again.
    pattern = active.transposed_csr(G.new_zeros(len(active)))
    by_column = torch.sparse.sampled_addmm(pattern, W, G.contiguous().t(), beta=0.0).values()
    return torch.empty_like(by_column).index_copy_(0, active.column_order, by_column)
