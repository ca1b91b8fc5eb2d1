"""Settings of a `TrainerConfig` that do nothing for the SAE at hand, or less than they say."""

from __future__ import annotations

import logging

from sae_lens.lm_saes.adapter import SAEAdapter
from sae_lens.lm_saes.config import TrainerConfig

logger = logging.getLogger(__name__)


def warn_of_idle_settings(cfg: TrainerConfig, adapter: SAEAdapter) -> None:
    """Log every setting that was changed and has no effect on this SAE."""
    has_k = adapter.current_k is not None
    default = {name: field.default for name, field in TrainerConfig.model_fields.items()}
    idle = {
        "lp_coefficient": not adapter.has_thresholds,
        "jumprelu_lr_factor": not adapter.has_thresholds,
        "initial_k": not has_k,
        "k_cold_booting_steps": cfg.initial_k is None or not has_k,
        "p": cfg.sparsity_loss_type != "power",
        "tanh_stretch_coefficient": cfg.sparsity_loss_type not in ("tanh", "tanh-quad"),
        "frequency_scale": cfg.sparsity_loss_type != "tanh-quad",
        "k_aux": not cfg.auxk_coefficient,
        "feature_sampling_window": True,
    }
    for name, is_idle in idle.items():
        value = getattr(cfg, name)
        if is_idle and value != default[name]:
            logger.warning(
                "%s=%r has no effect on the training of this %s SAE.",
                name,
                value,
                str(adapter.sae.cfg.architecture),
            )


def warn_of_unfinished_k(target: int, cold_steps: int, steps: int, total_steps: int) -> None:
    """Log when the training ends before k has come down to its target."""
    if cold_steps + steps > total_steps:
        logger.warning(
            "k would reach %d after %d steps at initial_k and %d more, but the training has only "
            "%d: it ends with a larger k.",
            target,
            cold_steps,
            steps,
            total_steps,
        )
