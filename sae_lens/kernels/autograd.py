"""The two differentiable operations of a sparse step; everything between is plain torch.

`hidden_at_entries` is the encoder and `sparse_decode_with_norms` the decoder. Both gradients are
exact: outside the given entries they are zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_lens.kernels.active_entries import ActiveEntries
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.entry_products import entry_products
from sae_lens.kernels.precision import without_autocast
from sae_lens.kernels.sparse_decode import decode_together, sparse_decode
from sae_lens.kernels.weight_gradient import weight_gradient
from sae_lens.kernels.workspace import Workspace


class Decoded(NamedTuple):
    """Reconstructions, and the decoder's row norms if they were asked for."""

    recons: Float[Tensor, "sets batch d_out"]
    norms: Float[Tensor, " d_sae"] | None


def hidden_at_entries(
    x: Float[Tensor, "batch d_in"],
    b_dec: Float[Tensor, " d_in"] | None,
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"] | None,
    found: ActiveEntries,
    workspace: Workspace,
) -> Float[Tensor, " nnz"]:
    """`((x - b_dec) @ W_enc + b_enc)[entries]`, which `found` holds already, with its gradients.

    The gradient of `b_dec` needs one product of W_enc with a vector, not with the batch.
    """
    return _HiddenAtEntries.apply(  # type: ignore[return-value]
        x, b_dec, W_enc, b_enc, found.hidden, found.active, workspace
    )


def sparse_decode_with_norms(
    values: Float[Tensor, "sets nnz"],
    W_dec: Float[Tensor, "d_sae d_out"],
    active: ActiveSet,
    workspace: Workspace,
    with_norms: bool = False,
    n_blocks: int = 1,
    n_training: int | None = None,
) -> Decoded:
    """`S @ W_dec` for several S with the same entries; `with_norms` also W_dec's row norms.

    Together, because both contribute to W_dec's gradient, which is then written once. With rows of
    `n_blocks` parts side by side, a norm is the sum of its parts' L2 norms. With `n_training`, only
    that many S, the first ones, contribute: for the others W_dec is a constant.
    """
    blocks = n_blocks if with_norms else 0
    n_training = len(values) if n_training is None else n_training
    recons, norms = _SparseDecode.apply(  # type: ignore[misc]
        values, W_dec, active, workspace, blocks, n_training
    )
    return Decoded(recons, None if norms is None else norms.sum(dim=-1))


class _HiddenAtEntries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        b_dec: Tensor | None,
        W_enc: Tensor,
        b_enc: Tensor | None,
        hidden: Tensor,
        active: ActiveSet,
        workspace: Workspace,
    ) -> Tensor:
        ctx.save_for_backward(x, b_dec, W_enc)
        ctx.active, ctx.workspace = active, workspace
        return hidden.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, b_dec, W_enc = ctx.saved_tensors
        needs_x, needs_b_dec, needs_W_enc, needs_b_enc = ctx.needs_input_grad[:4]
        active: ActiveSet = ctx.active
        grad_x = grad_b_dec = grad_W_enc = grad_b_enc = None
        with without_autocast(x):
            if needs_W_enc:
                centred = x if b_dec is None else x - b_dec
                grad_W_enc = ctx.workspace.take_gradient(W_enc)
                weight_gradient(gradient, active, centred, out=grad_W_enc.t())
            if needs_b_enc or needs_b_dec:
                per_feature = active.sum_cols(gradient).to(gradient.dtype)
                grad_b_enc = per_feature if needs_b_enc else None
                grad_b_dec = -(W_enc @ per_feature) if needs_b_dec else None
            if needs_x:
                grad_x = sparse_decode(gradient, active, W_enc.t().contiguous())
        return grad_x, grad_b_dec, grad_W_enc, grad_b_enc, None, None, None


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        W_dec: Tensor,
        active: ActiveSet,
        workspace: Workspace,
        n_blocks: int,
        n_training: int,
    ) -> tuple[Tensor, Tensor | None]:
        with without_autocast(W_dec):
            recons = decode_together(values, active, W_dec)
            parts = W_dec.unflatten(1, (n_blocks, -1)) if n_blocks else None
            norms = None if parts is None else torch.linalg.vector_norm(parts, dim=-1)
        ctx.save_for_backward(values, W_dec, norms)
        ctx.active, ctx.workspace, ctx.n_training = active, workspace, n_training
        ctx.set_materialize_grads(False)
        return recons, norms

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_recons: Tensor | None, grad_norms: Tensor | None
    ) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, W_dec, norms = ctx.saved_tensors
        needs_values, needs_W_dec = ctx.needs_input_grad[:2]
        n_training: int = ctx.n_training
        every = trained = ctx.active.stacked(len(values))
        if n_training < len(values):
            trained = ctx.active.stacked(n_training)
        grad_values = grad_W_dec = None
        with without_autocast(W_dec):
            if grad_recons is not None:
                grad_recons = grad_recons.to(W_dec.dtype).contiguous()
                if needs_values:
                    products = entry_products(grad_recons.flatten(0, 1), W_dec, every)
                    grad_values = products.view_as(values)
            if needs_W_dec and not (grad_recons is None and grad_norms is None):
                grad_W_dec = ctx.workspace.take_gradient(W_dec)
                through_norms = grad_norms is not None
                if through_norms:
                    # the gradient of a norm is the unit vector, and 0 at the origin
                    per_norm = torch.where(norms > 0, grad_norms / norms, 0.0).unsqueeze(-1)
                    blocks = (per_norm.shape[1], -1)
                    out = grad_W_dec.unflatten(1, blocks)
                    torch.mul(W_dec.unflatten(1, blocks), per_norm, out=out)
                if grad_recons is not None:
                    G = grad_recons[:n_training].flatten(0, 1)
                    flat = values[:n_training].flatten()
                    weight_gradient(flat, trained, G, grad_W_dec, through_norms)
        return grad_values, grad_W_dec, None, None, None, None
