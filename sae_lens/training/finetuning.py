"""The fine-tuning phase: which parameters go on learning after the main training."""

from __future__ import annotations

from typing import Any

import torch

# "scaling_factor" is how files and callers of early releases spell the parameter.
_FACTOR = ["scaling_factor", "finetuning_scaling_factor"]
FINETUNING_PARAMETERS: dict[str, list[str]] = {
    "scale": [*_FACTOR],
    "decoder": [*_FACTOR, "W_dec", "b_dec"],
    "unrotated_decoder": [*_FACTOR, "b_dec"],
}


def freeze_scaling_factor(sae: torch.nn.Module) -> None:
    """The factor learns in the fine-tuning phase only."""
    for name, parameter in sae.named_parameters():
        if "scaling_factor" in name:
            parameter.requires_grad_(False)


def add_scaling_factor(sae: Any) -> None:
    """Give an SAE that was trained without one the factor that fine-tuning needs."""
    if any("scaling_factor" in name for name, _ in sae.named_parameters()):
        return
    ones = torch.ones(sae.cfg.d_sae, dtype=sae.dtype, device=sae.device)
    sae.finetuning_scaling_factor = torch.nn.Parameter(ones)
    sae.cfg.finetuning_scaling_factor = True


def leave_only_trainable(sae: torch.nn.Module, method: str) -> None:
    """Let the parameters of `method` learn and no others.

    The gradients of the others are cleared: an optimiser would go on moving what still has one.
    """
    for name, parameter in sae.named_parameters():
        learns = name in FINETUNING_PARAMETERS[method]
        parameter.requires_grad_(learns)
        if not learns:
            parameter.grad = None
