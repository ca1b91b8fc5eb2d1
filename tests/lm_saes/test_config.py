"""Defaults and validation of the three configs, and the SAE's config under its names there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sae_lens.lm_saes import (
    BaseConfig,
    Initializer,
    InitializerConfig,
    SAEConfig,
    TrainerConfig,
    WandbConfig,
)
from sae_lens.saes import TrainingSAE, TrainingSAEConfig

TRAINER_DEFAULTS: dict[str, Any] = {
    "l1_coefficient": 0.00008,
    "l1_coefficient_warmup_steps": 0.1,
    "lp_coefficient": None,
    "auxk_coefficient": None,
    "amp_dtype": torch.bfloat16,
    "sparsity_loss_type": None,
    "tanh_stretch_coefficient": 4.0,
    "frequency_scale": 0.01,
    "p": 1,
    "initial_k": None,
    "k_warmup_steps": 0.1,
    "k_cold_booting_steps": 0,
    "k_schedule_type": "linear",
    "k_exponential_factor": 3.0,
    "k_aux": 512,
    "dead_threshold": 10_000_000,
    "skip_metrics_calculation": False,
    "gradient_accumulation_steps": 1,
    "lr": 0.0004,
    "betas": (0.9, 0.999),
    "optimizer_class": "adam",
    "optimizer_foreach": True,
    "lr_scheduler_name": "constantwithwarmup",
    "lr_end_ratio": 1 / 32,
    "lr_warm_up_steps": 5000,
    "lr_cool_down_steps": 0.2,
    "jumprelu_lr_factor": 1.0,
    "clip_grad_norm": 0.0,
    "feature_sampling_window": 1000,
    "total_training_tokens": 300_000_000,
    "log_frequency": 1000,
    "eval_frequency": 1000,
    "n_checkpoints": 10,
    "check_point_save_mode": "log",
    "from_pretrained_path": None,
    "exp_result_path": "results",
}
WANDB_DEFAULTS = {
    "wandb_project": "gpt2-sae-training",
    "exp_name": None,
    "wandb_entity": None,
    "wandb_run_id": None,
    "wandb_resume": "never",
}
INITIALIZER_DEFAULTS = {
    "bias_init_method": "all_zero",
    "decoder_uniform_bound": 1.0,
    "encoder_uniform_bound": 1.0,
    "init_encoder_with_decoder_transpose": True,
    "init_encoder_with_decoder_transpose_factor": 1.0,
    "init_log_jumprelu_threshold_value": None,
    "grid_search_init_norm": False,
    "initialize_W_D_with_active_subspace": False,
    "d_active_subspace": None,
    "initialize_lorsa_with_mhsa": None,
    "initialize_tc_with_mlp": None,
    "model_layer": None,
    "init_encoder_bias_with_mean_hidden_pre": False,
}


@pytest.mark.parametrize(
    ("cls", "defaults"),
    [
        (TrainerConfig, TRAINER_DEFAULTS),
        (WandbConfig, WANDB_DEFAULTS),
        (InitializerConfig, INITIALIZER_DEFAULTS),
    ],
)
def test_fields_and_defaults(cls: type[BaseConfig], defaults: dict[str, Any]):
    assert {name: getattr(cls(), name) for name in cls.model_fields} == defaults
    assert issubclass(cls, BaseConfig)


def test_configs_survive_dicts_and_json():
    cfg = TrainerConfig(
        lr_warm_up_steps=1, lr_cool_down_steps=1.0, k_warmup_steps=0.5, betas=(0, 1)
    )
    for again in (
        TrainerConfig.model_validate(cfg.model_dump()),
        TrainerConfig.model_validate_json(cfg.model_dump_json()),
    ):
        assert again == cfg
        assert type(again.lr_warm_up_steps) is int
        assert type(again.lr_cool_down_steps) is float
    assert "amp_dtype" not in cfg.model_dump()
    json.dumps(cfg.model_dump())


def test_the_autocast_dtype_may_be_a_name_or_none():
    assert TrainerConfig(amp_dtype="float16").amp_dtype == torch.float16
    assert TrainerConfig(amp_dtype=None).amp_dtype is None
    with pytest.raises(ValidationError, match="amp_dtype"):
        TrainerConfig(amp_dtype="half")


@pytest.mark.parametrize(
    "fields",
    [
        {"lr_end_ratio": 1.5},
        {"from_pretrained_path": "/nowhere/at/all"},
        {"l1_coefficient_warmup_steps": 1.5},
        {"lr_cool_down_steps": -1},
        {"k_cold_booting_steps": -0.5},
        {"lr": {"jumprelu": 1e-3}},
        {"lr": {"others": 1e-3, "decoder": 1e-3}},
        {"gradient_accumulation_steps": 0},
        {"clip_grad_norm": -1.0},
        {"sparsity_loss_type": "l0"},
        {"lr_scheduler_name": "step"},
        {"optimizer_class": "sgd"},
        {"no_such_field": 1},
        {"lr_scheduler_name": "exponentialwarmup", "lr_end_ratio": 0.0},
        {"lr_warm_up_steps": 0.7, "lr_cool_down_steps": 0.5},
        {"k_cold_booting_steps": 0.6, "k_warmup_steps": 0.5},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": {"others": 1e-3, "jumprelu": -1.0}},
        {"lr": {"others": 1e-3, "jumprelu": 1e-3}, "jumprelu_lr_factor": 0.5},
        {"l1_coefficient": -1.0},
        {"lp_coefficient": -1.0},
        {"auxk_coefficient": -1.0},
        {"tanh_stretch_coefficient": 0.0},
        {"frequency_scale": 0.0},
        {"p": 0},
        {"k_aux": 0},
        {"dead_threshold": -1},
        {"jumprelu_lr_factor": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError):
        TrainerConfig(**fields)


def test_making_a_config_makes_no_folder(tmp_path: Path):
    TrainerConfig(exp_result_path=str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_learning_rates_by_group():
    cfg = TrainerConfig(lr=2.0, jumprelu_lr_factor=0.5)
    assert (cfg.learning_rate("others"), cfg.learning_rate("jumprelu")) == (2.0, 1.0)
    cfg = TrainerConfig(lr={"others": 2.0, "jumprelu": 3.0})
    assert (cfg.learning_rate("others"), cfg.learning_rate("jumprelu")) == (2.0, 3.0)


def test_wandb_settings_reach_wandb(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}
    monkeypatch.setattr("wandb.init", lambda **kwargs: seen.update(kwargs) or "run")
    cfg = WandbConfig(exp_name="a", wandb_entity="e", wandb_run_id="7", wandb_resume="must")
    assert cfg.init() == "run"
    assert seen == {
        "project": "gpt2-sae-training", "name": "a", "entity": "e", "id": "7", "resume": "must",
    }  # fmt: skip
    with pytest.raises(ValidationError):
        WandbConfig(wandb_resume="perhaps")


def test_initialiser_settings():
    with pytest.raises(ValueError, match="d_active_subspace"):
        InitializerConfig(initialize_W_D_with_active_subspace=True)
    with pytest.raises(ValueError, match="model_layer"):
        InitializerConfig(initialize_tc_with_mlp=True)
    for fields in (
        {"decoder_uniform_bound": 0.0},
        {"encoder_uniform_bound": -1.0},
        {"init_encoder_with_decoder_transpose_factor": 0.0},
        {"init_log_jumprelu_threshold_value": 1000.0},
        {"d_active_subspace": 0},
    ):
        with pytest.raises(ValidationError, match=next(iter(fields))):
            InitializerConfig(**fields)
    with pytest.raises(NotImplementedError, match="attention"):
        Initializer(InitializerConfig(initialize_lorsa_with_mhsa=True))


def sae_config(**fields: Any) -> SAEConfig:
    return SAEConfig(**{"hook_point_in": "blocks.3.hook_mlp_out", "d_model": 6, **fields})


@pytest.mark.parametrize(
    ("act_fn", "architecture"),
    [("relu", "standard"), ("topk", "topk"), ("batchtopk", "batchtopk"), ("jumprelu", "jumprelu")],
)
def test_names_there_and_here(act_fn: Any, architecture: str):
    cfg = sae_config(
        act_fn=act_fn,
        expansion_factor=2,
        top_k=3,
        jumprelu_threshold_window=0.5,
        norm_activation="token-wise",
    ).to_training_config()
    assert isinstance(cfg, TrainingSAEConfig)
    assert cfg.architecture == architecture
    assert (cfg.d_in, cfg.d_sae, cfg.hook_name, cfg.hook_layer) == (
        6,
        12,
        "blocks.3.hook_mlp_out",
        3,
    )
    assert cfg.normalize_activations == "constant_norm_rescale"
    assert cfg.apply_b_dec_to_input is False
    sae = TrainingSAE(cfg)
    if "topk" in architecture:
        assert sae.activation_fn.k == 3
        assert cfg.rescale_acts_by_decoder_norm
    elif architecture == "jumprelu":
        assert cfg.jumprelu_bandwidth == 0.5
        assert "log_threshold" in dict(sae.named_parameters())
    else:
        assert cfg.scale_sparsity_penalty_by_decoder_norm


@pytest.mark.parametrize(("act_fn", "has_effect"), [("relu", False), ("topk", True)])
def test_what_the_decoder_norm_is_included_in(act_fn: Any, has_effect: bool, caplog: Any):
    sae_config(act_fn=act_fn, top_k=3, sparsity_include_decoder_norm=False)
    assert ("sparsity_include_decoder_norm=False has no effect" in caplog.text) is not has_effect


def test_normalisations_by_name():
    assert sae_config().to_training_config().normalize_activations == "expected_average_only_in"
    cfg = sae_config(norm_activation="inference").to_training_config()
    assert cfg.normalize_activations == "none"
    with pytest.raises(ValueError, match="batch-wise"):
        sae_config(norm_activation="batch-wise")
    with pytest.raises(ValueError, match="transcoder"):
        sae_config(hook_point_out="blocks.4.hook_mlp_out", norm_activation="token-wise")
    with pytest.raises(ValueError, match="dtype"):
        sae_config(dtype="int8")
    assert sae_config(dtype=torch.bfloat16).dtype == "bfloat16"
