"""Schedules and training features that contradict each other, or other settings of a run."""

from __future__ import annotations

from typing import Any

from sae_lens.training.features import TrainingFeatures
from sae_lens.training.loss_schedules import steps_of_setting

# What says that the config's own schedule of the learning rate is used.
_LR_DEFAULTS = {
    "lr_scheduler_name": "constant",
    "lr_warm_up_steps": 0,
    "lr_decay_steps": 0,
    "n_restart_cycles": 1,
}


_STEPS = ("l1_warm_up_steps", "lr_warm_up_steps", "lr_decay_steps")


def refuse_bad_steps(cfg: Any) -> None:
    """`ValueError` for a number of steps that is negative, or a share of them above 1."""
    for name in _STEPS:
        if hasattr(cfg, name):
            steps_of_setting(name, getattr(cfg, name), cfg.total_training_steps)


def refuse_contradictory_features(cfg: Any) -> None:
    """`ValueError` for a `features` that does not go with the rest of a config.

    What depends on the SAE itself is checked when its trainer is made, before the first step.
    """
    if cfg.features is None:
        return
    features = TrainingFeatures.of(cfg.features)
    _refuse_two_lr_schedules(cfg, features)
    weights = features.initial_weights
    if weights is not None:
        if getattr(cfg, "from_pretrained_path", None) is not None:
            raise ValueError(
                "from_pretrained_path and features.initial_weights contradict each other: the "
                "weights are those of the trained SAE. Leave one of them out."
            )
        if weights.search_decoder_norm and getattr(cfg, "normalize_sae_decoder", False):
            raise ValueError(
                "normalize_sae_decoder and initial_weights.search_decoder_norm contradict each "
                "other: unit rows would undo the norm that is found. Set one of them to False."
            )
    warm_up = getattr(cfg, "l1_warm_up_steps", 0)
    if "sparsity" in features.weight_schedules and warm_up:
        raise ValueError(
            f"l1_warm_up_steps={warm_up} and features.weight_schedules['sparsity'] are both "
            "schedules of the sparsity coefficient; give one of them."
        )
    d_sae = getattr(cfg, "d_sae", None)
    if features.target_l0 is not None and d_sae is not None and features.target_l0.target > d_sae:
        raise ValueError(
            f"target_l0.target is {features.target_l0.target}; there are only {d_sae} features."
        )


def _refuse_two_lr_schedules(cfg: Any, features: TrainingFeatures) -> None:
    schedule = features.lr_schedule
    if schedule is None:
        return
    given = [
        f"{name}={getattr(cfg, name)!r}"
        for name, default in _LR_DEFAULTS.items()
        if getattr(cfg, name) != default
    ]
    if cfg.lr_end is not None and cfg.lr_end != cfg.lr / 10:
        given.append(f"lr_end={cfg.lr_end!r}")
    if given:
        raise ValueError(
            f"{', '.join(given)} and features.lr_schedule are both schedules of the learning rate; "
            "give one of them."
        )
    if cfg.total_training_steps > 0:
        schedule.factor(cfg.total_training_steps)
