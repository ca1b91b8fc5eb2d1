"""Says which settings of a run do nothing: those of another architecture, or beside the others."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from sae_lens.saes.idle_settings import idle_settings
from sae_lens.saes.whitening import WHITENING
from sae_lens.training.features import TrainingFeatures
from sae_lens.whitening import DEFAULT_SHRINKAGE

logger = logging.getLogger(__name__)


def warn_of_idle_settings(cfg: Any) -> None:
    """Log every setting of a run's config that was changed and has no effect."""
    if cfg.hook_eval != "NOT_IN_USE":
        _warn(f"hook_eval={cfg.hook_eval!r} is unused: evaluations use hook_name.")
    if not cfg.is_dataset_tokenized:
        _warn("is_dataset_tokenized=False is unused: whether rows hold tokens is detected.")
    if not cfg.save_final_checkpoint:
        _warn("save_final_checkpoint=False is unused: the final checkpoint is always saved.")
    if cfg.cached_activations_path is not None and not cfg.use_cached_activations:
        logger.warning(
            "cached_activations_path=%r is not read: use_cached_activations is False.",
            cfg.cached_activations_path,
        )
    for name, value in idle_settings(cfg if cfg.sae is None else cfg.sae).items():
        logger.warning("%s=%r has no effect on the %s architecture.", name, value, cfg.architecture)
    for name, reason in _without_what_they_need(cfg).items():
        logger.warning("%s=%r has no effect: %s.", name, getattr(cfg, name), reason)
    features = TrainingFeatures.of(cfg.features)
    if features.k_schedule is not None and cfg.compile_sae:
        logger.warning(
            "compile_sae compiles the training pass anew for each k of features.k_schedule, and no "
            "more after the eighth: most steps will not be compiled."
        )
    shrinkage = features.whitening_shrinkage
    if shrinkage != DEFAULT_SHRINKAGE and cfg.normalize_activations != WHITENING:
        logger.warning(
            "features.whitening_shrinkage=%s has no effect: normalize_activations is %r.",
            shrinkage,
            cfg.normalize_activations,
        )


def _without_what_they_need(cfg: Any) -> dict[str, str]:
    """Settings that were changed, and why they do nothing."""
    default = {name: field.default for name, field in type(cfg).__dataclass_fields__.items()}
    evaluates = cfg.log_to_wandb or cfg.log_to_jsonl is not None or cfg.keep_best_metric is not None
    schedule = cfg.lr_scheduler_name
    no_cache = "the activations are read from a cache"
    reasons = {
        "lr_end": schedule == "constant" and "the schedule is constant",
        "n_restart_cycles": schedule != "cosineannealingwarmrestarts"
        and "it is for cosineannealingwarmrestarts",
        "finetuning_method": not cfg.finetuning_tokens and "finetuning_tokens is 0",
        "llm_compilation_mode": not cfg.compile_llm and "compile_llm is False",
        "sae_compilation_mode": not cfg.compile_sae and "compile_sae is False",
        "keep_best_mode": cfg.keep_best_metric is None and "keep_best_metric is None",
        "eval_dataset_split": cfg.eval_dataset_path is None and "eval_dataset_path is None",
        "eval_dataset_path": not evaluates
        and "nothing is evaluated without a log, or keep_best_metric",
        "compile_llm": cfg.use_cached_activations and not evaluates and no_cache,
        "autocast_lm": cfg.use_cached_activations and not evaluates and no_cache,
        "mse_loss_normalization": cfg.mse_loss_normalization not in (None, "dense_batch")
        and "allowed are None and dense_batch, so plain squared errors are taken",
    }
    defaults_of_run = {"lr_end": (None, cfg.lr / 10)}
    return {
        name: reason
        for name, reason in reasons.items()
        if reason and getattr(cfg, name) not in defaults_of_run.get(name, (default[name],))
    }


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=2)
