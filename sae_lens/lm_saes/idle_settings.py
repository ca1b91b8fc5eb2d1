"""Settings of the configs that do nothing for the SAE at hand, or less than they say."""

from __future__ import annotations

import logging

from sae_lens.lm_saes.adapter import SAEAdapter
from sae_lens.lm_saes.config import BaseConfig, InitializerConfig, TrainerConfig

logger = logging.getLogger(__name__)


def warn_of_idle_settings(cfg: TrainerConfig, adapter: SAEAdapter) -> None:
    """Log every setting that was changed and has no effect on this SAE."""
    has_k = adapter.current_k is not None
    _warn(
        cfg,
        {
            "lp_coefficient": not adapter.has_thresholds,
            "jumprelu_lr_factor": not adapter.has_thresholds,
            "initial_k": not has_k,
            "k_cold_booting_steps": cfg.initial_k is None or not has_k,
            "p": cfg.sparsity_loss_type != "power",
            "tanh_stretch_coefficient": cfg.sparsity_loss_type not in ("tanh", "tanh-quad"),
            "frequency_scale": cfg.sparsity_loss_type != "tanh-quad",
            "k_aux": not cfg.auxk_coefficient,
            "feature_sampling_window": True,
        },
        f"the training of this {adapter.sae.cfg.architecture} SAE",
    )


def warn_of_idle_rules(cfg: InitializerConfig, adapter: SAEAdapter) -> None:
    """Log every setting of an initialiser that was changed and has no effect on this SAE."""
    transposes = cfg.init_encoder_with_decoder_transpose
    _warn(
        cfg,
        {
            "encoder_uniform_bound": transposes,
            "init_encoder_with_decoder_transpose_factor": not transposes,
            "init_log_jumprelu_threshold_value": not adapter.has_thresholds,
            "d_active_subspace": not cfg.initialize_W_D_with_active_subspace,
            "model_layer": not cfg.initialize_tc_with_mlp,
        },
        f"the first weights of this {adapter.sae.cfg.architecture} SAE",
    )


def _warn(cfg: BaseConfig, idle: dict[str, bool], what: str) -> None:
    for name, is_idle in idle.items():
        value = getattr(cfg, name)
        if is_idle and value != type(cfg).model_fields[name].default:
            logger.warning("%s=%r has no effect on %s.", name, value, what)


def warn_of_long_phases(warm_up_steps: int, cool_down_steps: int, total_steps: int) -> None:
    """Log when the learning rate begins to fall before it has risen."""
    if 0 < warm_up_steps < total_steps < warm_up_steps + cool_down_steps:
        logger.warning(
            "lr_warm_up_steps=%d and lr_cool_down_steps=%d are more than the %d steps of the "
            "training: the learning rate falls before it has risen to its full value.",
            warm_up_steps,
            cool_down_steps,
            total_steps,
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
