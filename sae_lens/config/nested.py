"""The 6.x spelling of a run: the SAE and the logging as objects of their own.

The flat fields stay the ones that everything else reads. Here they are set from the objects, and a
flat field that was given another value as well is refused.
"""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

from sae_lens.config.logging import LoggingConfig
from sae_lens.config.trainer import SAETrainerConfig
from sae_lens.saes.config import TrainingSAEConfig

# Fields that a flat config shares by name with the config of its SAE.
_SAE_FIELDS = (
    "architecture", "d_in", "d_sae", "activation_fn_kwargs", "apply_b_dec_to_input",
    "normalize_activations", "lp_norm", "use_ghost_grads", "normalize_sae_decoder", "noise_scale",
    "decoder_orthogonal_init", "mse_loss_normalization", "jumprelu_init_threshold",
    "jumprelu_bandwidth", "decoder_heuristic_init", "decoder_heuristic_init_norm",
    "init_encoder_as_decoder_transpose", "scale_sparsity_penalty_by_decoder_norm",
)  # fmt: skip

# Facts about model and data, which the run knows and writes into its SAE's config.
_RUN_FACTS = (
    "model_name", "hook_name", "hook_layer", "hook_head_index", "context_size", "prepend_bos",
    "dataset_path", "dataset_trust_remote_code", "seqpos_slice", "model_from_pretrained_kwargs",
    "sae_lens_training_version",
)  # fmt: skip

# What an SAE's config may say about its origin when the run does not.
_FACTS_TO_TAKE = ("model_name", "hook_name", "hook_head_index", "context_size", "dataset_path")


def take_nested(cfg: Any, named: frozenset[str]) -> None:
    """Set the flat fields of a runner config from its `sae` and `logger`, if it has them.

    Raises:
        TypeError: when they are of another kind.
        ValueError: when a flat field was named with another value.
    """
    if isinstance(cfg.sae, dict):
        cfg.sae = as_sae_config(cfg.sae)
    if isinstance(cfg.logger, dict):
        cfg.logger = LoggingConfig(**cfg.logger)
    if cfg.sae is not None:
        if not isinstance(cfg.sae, TrainingSAEConfig):
            raise TypeError(
                f"sae must be a training config such as TopKTrainingSAEConfig, not a "
                f"{type(cfg.sae).__name__}."
            )
        _take_sae(cfg, cfg.sae, named)
    if cfg.logger is not None:
        if not isinstance(cfg.logger, LoggingConfig):
            raise TypeError(f"logger must be a LoggingConfig, not a {type(cfg.logger).__name__}.")
        _take_logger(cfg, named)


def as_sae_config(values: dict[str, Any]) -> TrainingSAEConfig:
    """The training config in a dict, of the class of its architecture."""
    return TrainingSAEConfig.from_dict(values)


def run_sae_config(cfg: Any) -> TrainingSAEConfig:
    """A copy of `cfg.sae` that knows model, hook and data of the run."""
    config = copy.deepcopy(cfg.sae)
    for name in _RUN_FACTS:
        setattr(config, name, getattr(cfg, name))
    config.device = cfg.device
    if cfg.finetuning_method is not None:
        config.finetuning_scaling_factor = True
    return config


def as_trainer_config(cfg: Any) -> SAETrainerConfig:
    """The training part of a runner config."""
    shared = {f.name for f in fields(SAETrainerConfig)} - {"logger"}
    values = {name: getattr(cfg, name) for name in shared if hasattr(cfg, name)}
    logging_fields = {f.name: getattr(cfg, f.name) for f in fields(LoggingConfig)}
    values |= {
        "total_training_samples": cfg.total_training_tokens,
        "train_batch_size_samples": cfg.train_batch_size_tokens,
        "adam_beta1": float(cfg.adam_beta1),
        "logger": LoggingConfig(**logging_fields),
    }
    return SAETrainerConfig(**values)


def _take_sae(cfg: Any, sae: TrainingSAEConfig, named: frozenset[str]) -> None:
    for name in _SAE_FIELDS:
        if hasattr(sae, name):
            _take(cfg, name, copy.deepcopy(getattr(sae, name)), named, "sae")
    cfg.architecture = str(cfg.architecture)
    _take(cfg, "activation_fn", sae.activation_fn_str, named, "sae")
    is_l0 = hasattr(sae, "l0_coefficient")
    coefficient = sae.l0_coefficient if is_l0 else sae.l1_coefficient  # type: ignore[attr-defined]
    _take(cfg, "l1_coefficient", coefficient, named, "sae")
    warm_up = getattr(sae, "l0_warm_up_steps" if is_l0 else "l1_warm_up_steps", None)
    if warm_up is not None:
        _take(cfg, "l1_warm_up_steps", warm_up, named, "sae")
    _take_device(cfg, sae, named)
    for name in _FACTS_TO_TAKE:
        if name not in named and getattr(sae, name, None) not in (None, ""):
            setattr(cfg, name, getattr(sae, name))
    if sae.form == "v6" and "b_dec_init_method" not in named:
        cfg.b_dec_init_method = "zeros"


def _take_logger(cfg: Any, named: frozenset[str]) -> None:
    """The run's logging settings are the logger's. A default there says nothing."""
    for setting in fields(LoggingConfig):
        name, value = setting.name, getattr(cfg.logger, setting.name)
        if value is None:  # filled in by the run
            continue
        if value == setting.default and name in named and getattr(cfg, name) is not None:
            cfg.logger = replace(cfg.logger, **{name: getattr(cfg, name)})
        else:
            _take(cfg, name, value, named, "logger")


def _take_device(cfg: Any, sae: TrainingSAEConfig, named: frozenset[str]) -> None:
    """The run's device is the SAE's. The default "cpu" of an SAE's config says nothing."""
    if "device" not in named:
        cfg.device = sae.device
    elif sae.device not in ("cpu", str(cfg.device)):
        raise ValueError(
            f"device={str(cfg.device)!r} contradicts sae.device={sae.device!r}; set one of them."
        )


def _take(cfg: Any, name: str, value: Any, named: frozenset[str], source: str) -> None:
    given = getattr(cfg, name)
    same = _plain(given) == _plain(value)
    if name in named and given is not None and not same:
        raise ValueError(
            f"{name}={given!r} contradicts {name}={value!r} of {source}=; leave {name} out, or set "
            f"it there."
        )
    setattr(cfg, name, value)


def _plain(value: Any) -> Any:
    """Names of early releases and callable strings as what they stand for."""
    if isinstance(value, str):
        return str(value)
    return value
