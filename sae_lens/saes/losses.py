"""Losses that several architectures share. Every term is a mean over the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ElementwiseLoss = Callable[[Tensor, Tensor], Tensor]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """`(prediction - target)^2`, elementwise."""
    return (prediction - target) ** 2


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
    """The p-norm (not its p-th power) of each token's features."""
    return feature_acts.norm(p=p, dim=-1)


def topk_aux_acts(
    k_aux: int,
    hidden_pre: Float[Tensor, "batch d_sae"],
    dead_neuron_mask: Bool[Tensor, " d_sae"],
) -> Float[Tensor, "batch d_sae"]:
    """Each token's `k_aux` largest raw pre-activations among dead features; zero elsewhere."""
    among_dead = hidden_pre.masked_fill(~dead_neuron_mask, -torch.inf)
    top = torch.topk(among_dead, k=k_aux, dim=-1, sorted=False)
    return torch.zeros_like(hidden_pre).scatter(-1, top.indices, top.values)


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
    if not bool(dead_neuron_mask.any()):
        return torch.zeros((), dtype=sae_out.dtype, device=sae_out.device)
    residual = x - sae_out
    ghost_acts = torch.exp(hidden_pre[:, dead_neuron_mask])
    ghost_out = ghost_acts @ W_dec[dead_neuron_mask]
    with torch.no_grad():
        wanted = residual.norm(dim=-1, keepdim=True)
        scale = wanted / (1e-6 + 2 * ghost_out.norm(dim=-1, keepdim=True))
    loss = mse_loss_fn(ghost_out * scale, residual.detach())
    rescale = (per_item_mse_loss / (loss + 1e-6)).detach()
    return (rescale * loss).mean()
