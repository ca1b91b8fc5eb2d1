"""Losses that several architectures share. Every term is a mean over the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.precision import sum_dtype
from sae_lens.saes.dead_features import may_look_at

ElementwiseLoss = Callable[[Tensor, Tensor], Tensor]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """`(prediction - target)^2`, elementwise, in float32 at least."""
    return (prediction.to(sum_dtype(prediction)) - target) ** 2


def reconstruction_error(
    prediction: Float[Tensor, "batch d"], target: Float[Tensor, "batch d"]
) -> Float[Tensor, ""]:
    """The squared distance of each token, on average."""
    return squared_error(prediction, target).sum(dim=-1).mean()


def squared_error_over_batch_norm(
    prediction: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch d_in"]:
    """Squared error divided by the norm of the target's deviation from the batch mean."""
    deviation = (target - target.mean(dim=0, keepdim=True)).norm(dim=-1, keepdim=True)
    return squared_error(prediction, target) / (deviation + 1e-6)


def mse_loss_fn_of(normalization: str | None) -> ElementwiseLoss:
    """The elementwise reconstruction loss: "dense_batch" normalises, anything else does not."""
    return squared_error_over_batch_norm if normalization == "dense_batch" else squared_error


def lp_sparsity(feature_acts: Float[Tensor, "batch d_sae"], p: float) -> Float[Tensor, " batch"]:
    """The p-norm (not its p-th power) of each token's features, summed in float32 at least."""
    return feature_acts.norm(p=p, dim=-1, dtype=sum_dtype(feature_acts))


def lp_sparsity_of_entries(
    values: Float[Tensor, " nnz"], active: ActiveSet, p: float
) -> Float[Tensor, " batch"]:
    """`lp_sparsity` of the features that have `values` at the active entries; p is finite."""
    magnitudes = values.to(sum_dtype(values)).abs()
    if p == 1:
        return active.sum_rows(magnitudes)
    # the root has no finite gradient at 0, where the norm's is 0 by convention
    powers = torch.where(magnitudes > 0, magnitudes, 1.0).pow(p) * (magnitudes > 0)
    totals = active.sum_rows(powers)
    return torch.where(totals > 0, totals, 1.0).pow(1 / p) * (totals > 0)


def topk_aux_acts(
    k_aux: int,
    hidden_pre: Float[Tensor, "batch d_sae"],
    dead_neuron_mask: Bool[Tensor, " d_sae"],
    selection_rank: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch d_sae"]:
    """Each token's `k_aux` largest raw pre-activations among dead features; zero elsewhere.

    `selection_rank` says what "largest" means, from pre-activations; themselves by default.
    """
    rank = hidden_pre if selection_rank is None else selection_rank(hidden_pre)
    among_dead = rank.masked_fill(~dead_neuron_mask, -torch.inf)
    top = torch.topk(among_dead, k=k_aux, dim=-1, sorted=False)
    values = hidden_pre.gather(-1, top.indices)
    if not may_look_at(dead_neuron_mask):  # then nobody knows whether there are k_aux of them
        values = values.masked_fill(top.values == -torch.inf, 0.0)
    return torch.zeros_like(hidden_pre).scatter(-1, top.indices, values)


def ghost_grad_loss(
    x: Float[Tensor, "batch d_in"],
    sae_out: Float[Tensor, "batch d_in"],
    per_item_mse_loss: Float[Tensor, "batch d_in"],
    hidden_pre: Float[Tensor, "batch d_sae"],
    dead_neuron_mask: Bool[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    mse_loss_fn: ElementwiseLoss,
) -> Float[Tensor, ""]:
    """Ghost gradients: let dead features predict the residual through `exp(hidden_pre)`.

    Jermyn & Templeton 2024, "Ghost Grads: An improvement on resampling" (Circuits Updates,
    January 2024). Zero when nothing is dead.
    """
    if not may_look_at(dead_neuron_mask):
        ghost_out = torch.exp(hidden_pre.masked_fill(~dead_neuron_mask, -torch.inf)) @ W_dec
        loss = ghost_out_loss(ghost_out, x, sae_out, per_item_mse_loss, mse_loss_fn)
        return torch.where(dead_neuron_mask.any(), loss, torch.zeros_like(loss))
    if not bool(dead_neuron_mask.any()):
        return torch.zeros((), dtype=sae_out.dtype, device=sae_out.device)
    ghost_out = torch.exp(hidden_pre[:, dead_neuron_mask]) @ W_dec[dead_neuron_mask]
    return ghost_out_loss(ghost_out, x, sae_out, per_item_mse_loss, mse_loss_fn)


def ghost_out_loss(
    ghost_out: Float[Tensor, "batch d_in"],
    x: Float[Tensor, "batch d_in"],
    sae_out: Float[Tensor, "batch d_in"],
    per_item_mse_loss: Float[Tensor, "batch d_in"],
    mse_loss_fn: ElementwiseLoss,
) -> Float[Tensor, ""]:
    """The ghost-gradient loss of what the dead features reconstruct."""
    residual = x - sae_out
    with torch.no_grad():
        wanted = residual.norm(dim=-1, keepdim=True)
        scale = wanted / (1e-6 + 2 * ghost_out.norm(dim=-1, keepdim=True))
    loss = mse_loss_fn(ghost_out * scale, residual.detach())
    rescale = (per_item_mse_loss / (loss + 1e-6)).detach()
    return (rescale * loss).mean()
