"""The numbers that are logged of a training run. Only logging steps compute them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.saes.training_step import reported_features
from sae_lens.training.loggers import Histogram
from sae_lens.training.statistics import count_active

# Biases that are logged as histograms with an evaluation: label -> parameter, by architecture.
_BIASES = {"standard": {"b_e": "b_enc"}, "gated": {"b_gate": "b_gate", "b_mag": "b_mag"}}


class ExplainedVariance(NamedTuple):
    """How much of the activations' variance a reconstruction accounts for."""

    overall: float
    """1 - mean squared error / variance, over the whole batch"""
    per_token_mean: float
    """mean over tokens of 1 - squared error / squared distance from the mean"""
    per_token_std: float
    """standard deviation of the same"""


@torch.no_grad()
def explained_variance(
    sae_in: Float[Tensor, "batch d_in"], sae_out: Float[Tensor, "batch d_in"]
) -> ExplainedVariance:
    """Explained variance of a batch, accumulated in float32."""
    sae_in, sae_out = sae_in.float(), sae_out.float()
    errors = (sae_out - sae_in).square().sum(dim=-1)
    distances = (sae_in - sae_in.mean(dim=0)).square().sum(dim=-1)
    per_token = 1 - errors / distances
    return ExplainedVariance(
        overall=(1 - errors.mean() / distances.mean()).item(),
        per_token_mean=per_token.mean().item(),
        per_token_std=per_token.std().item() if len(per_token) > 1 else 0.0,
    )


def mean_l0(feature_acts: Tensor) -> float:
    """Mean number of active features per token."""
    return count_active(feature_acts).item() / max(feature_acts.shape[:-1].numel(), 1)


def reconstruction_values(output: Any) -> dict[str, float]:
    """Explained variance and L0 of a step's output.

    `metrics/explained_variance` is one minus the ratio of mean error to mean variance; the older
    mean over tokens goes by `_legacy`, its spread also by the name it has always had.
    """
    explained = explained_variance(output.sae_in, output.sae_out)
    return {
        "metrics/explained_variance": explained.overall,
        "metrics/explained_variance_std": explained.per_token_std,
        "metrics/explained_variance_legacy": explained.per_token_mean,
        "metrics/explained_variance_legacy_std": explained.per_token_std,
        "metrics/l0": mean_l0(reported_features(output)),
    }


def loss_values(
    loss: float | Tensor, losses: Mapping[str, float | Tensor], l1_coefficient: float
) -> dict[str, float]:
    """The loss and its parts.

    `l1_loss` is divided by the coefficient that it was computed with, so that runs with different
    coefficients can be compared; `raw_l1_loss` is not. Under a coefficient of 0 both are the same.
    """
    values = {"losses/overall_loss": _unwrap_item(loss)}
    for name, part in losses.items():
        values[f"losses/{name}"] = _unwrap_item(part)
    if "l1_loss" in losses:
        raw = values["losses/l1_loss"]
        values["losses/raw_l1_loss"] = raw
        values["losses/l1_loss"] = raw / l1_coefficient if l1_coefficient else raw
    return values


def density_values(densities: Float[Tensor, " d_sae"], threshold: float) -> dict[str, Any]:
    """The distribution of firing densities, and how many lie below some bounds."""
    log_densities = _log_feature_sparsity(densities)
    return {
        "metrics/mean_log10_feature_sparsity": log_densities.mean().item(),
        "plots/feature_density_line_chart": Histogram(log_densities),
        "sparsity/below_1e-5": (densities < 1e-5).sum().item(),
        "sparsity/below_1e-6": (densities < 1e-6).sum().item(),
        "sparsity/below_dead_feature_threshold": (densities < threshold).sum().item(),
    }


@torch.no_grad()
def weight_values(sae: Any) -> dict[str, Any]:
    """Histograms of decoder norms and of the architecture's biases."""
    values = {"weights/W_dec_norms": Histogram(sae.W_dec.norm(dim=-1))}
    for label, name in _BIASES.get(str(sae.cfg.architecture), {}).items():
        values[f"weights/{label}"] = Histogram(getattr(sae, name))
    return values


def _unwrap_item(item: float | Tensor) -> float:
    """A number, whether it comes as one or as a scalar tensor."""
    return item.item() if isinstance(item, Tensor) else item


def _log_feature_sparsity(feature_sparsity: Tensor, eps: float = 1e-10) -> Tensor:
    """log10 of firing densities, on the CPU; `eps` stands in for zero."""
    dtype = torch.promote_types(feature_sparsity.dtype, torch.float32)  # in float16 eps would be 0
    return torch.log10(feature_sparsity.to(dtype) + eps).detach().cpu()
