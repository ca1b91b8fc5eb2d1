"""Sparse products of bfloat16 weights on CPU: in float32, over the features that are active.

MKL has no sparse products in bfloat16. A few thousand features are active in a batch, whatever the
width, so their rows are gathered into a float32 matrix, and the product is taken with that.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.kernels.active_set import ActiveSet


def is_needed(W: Tensor) -> bool:
    """Whether the products of W take this way."""
    return W.dtype == torch.bfloat16 and W.device.type == "cpu"


def compacted(active: ActiveSet) -> tuple[Int[Tensor, " n_active"], ActiveSet]:
    """The features that are active at all, and the entries among those alone."""
    features, cols = torch.unique(active.cols, return_inverse=True)
    return features, ActiveSet(active.rows, cols, torch.Size((active.shape[0], len(features))))


def put_rows(
    features: Int[Tensor, " n_active"],
    rows: Float[Tensor, "n_active d_out"],
    out: Float[Tensor, "d_sae d_out"],
    accumulate: bool,
) -> Float[Tensor, "d_sae d_out"]:
    """`rows` at `features` of `out`, in its dtype; zeros, or what was there, elsewhere."""
    if not accumulate:
        out.zero_()
        return out.index_copy_(0, features, rows.to(out.dtype))
    return out.index_copy_(0, features, (rows + out[features].float()).to(out.dtype))
