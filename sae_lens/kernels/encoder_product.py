"""The one dense product of a step, into memory that is used again.

Under autocast it is taken in autocast's dtype, like any other matrix product of the dense form.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.kernels.precision import product_dtype, without_autocast
from sae_lens.kernels.workspace import Workspace


def reference(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"] | None,
    workspace: Workspace,
) -> Float[Tensor, "batch d_sae"]:
    """`x @ W + bias`."""
    product = x @ W
    return product if bias is None else product + bias


def encoder_product(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"] | None,
    workspace: Workspace,
) -> Float[Tensor, "batch d_sae"]:
    """`x @ W + bias` in the workspace's scratch memory, without a gradient."""
    low = product_dtype(x)
    with without_autocast(x):
        if low != x.dtype:
            product = x.to(low) @ W.to(low)
            return product if bias is None else product + bias
        out = workspace.scratch((x.shape[0], W.shape[1]), x.dtype, x.device, "product")
        if bias is None:
            return torch.mm(x, W, out=out)
        return torch.addmm(bias, x, W, out=out)
