from __future__ import annotations

from typing import Any

import pytest

from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig, SAETrainerConfig
from sae_lens.saes import (
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from tests.helpers import flat_config_dict

CONFIGS = [
    StandardTrainingSAEConfig(d_in=8, d_sae=16, l1_coefficient=3.0, l1_warm_up_steps=7),
    GatedTrainingSAEConfig(d_in=8, d_sae=16, l1_coefficient=3.0, l1_warm_up_steps=7),
    JumpReLUTrainingSAEConfig(d_in=8, d_sae=16, l0_coefficient=3.0, l0_warm_up_steps=7),
    TopKTrainingSAEConfig(d_in=8, d_sae=16, k=3, apply_b_dec_to_input=False),
]
RUN: dict[str, Any] = {
    "verbose": False, "hook_name": "blocks.3.hook_resid_post", "model_name": "m",
    "context_size": 32, "dataset_path": "d",
}  # fmt: skip


@pytest.mark.parametrize("sae", CONFIGS, ids=lambda c: str(c.architecture))
def test_the_flat_fields_follow_the_object(sae: Any) -> None:
    cfg = LanguageModelSAERunnerConfig(sae=sae, **RUN)
    assert cfg.architecture == sae.architecture
    assert (cfg.d_in, cfg.d_sae, cfg.hook_layer) == (8, 16, 3)
    assert cfg.normalize_sae_decoder is False
    assert cfg.b_dec_init_method == "zeros"
    if sae.architecture == "topk":
        assert cfg.activation_fn_kwargs == {"k": 3}
        assert cfg.apply_b_dec_to_input is False
    else:
        assert (cfg.l1_coefficient, cfg.l1_warm_up_steps) == (3.0, 7)


@pytest.mark.parametrize("sae", CONFIGS, ids=lambda c: str(c.architecture))
def test_the_sae_is_of_the_later_form_and_knows_the_run(sae: Any) -> None:
    cfg = LanguageModelSAERunnerConfig(sae=sae, **RUN)
    for made in (
        TrainingSAE(cfg.training_sae_config()),
        TrainingSAE.from_dict(cfg.get_training_sae_cfg_dict()),
    ):
        assert made.form == "v6"
        assert type(made.cfg) is type(sae)
        assert (made.cfg.hook_name, made.cfg.hook_layer) == ("blocks.3.hook_resid_post", 3)
        assert made.cfg.metadata.context_size == 32
    assert sae.hook_name == ""  # the given object is left alone


@pytest.mark.parametrize("sae", CONFIGS, ids=lambda c: str(c.architecture))
def test_a_nested_config_goes_through_a_dict(sae: Any) -> None:
    logger = LoggingConfig(log_to_wandb=False, wandb_project="p")
    cfg = LanguageModelSAERunnerConfig(sae=sae, logger=logger, **RUN)
    again = LanguageModelSAERunnerConfig.from_dict(cfg.to_dict())
    assert again.to_dict() == cfg.to_dict()
    assert type(again.sae) is type(sae)
    assert isinstance(again.logger, LoggingConfig)


def test_a_default_of_the_logger_does_not_contradict_a_named_field() -> None:
    logger = LoggingConfig(log_to_wandb=False)
    cfg = LanguageModelSAERunnerConfig(verbose=False, logger=logger, eval_every_n_wandb_logs=5)
    assert cfg.eval_every_n_wandb_logs == cfg.logger.eval_every_n_wandb_logs == 5
    assert cfg.log_to_wandb is False
    assert logger == LoggingConfig(log_to_wandb=False)  # it may serve other runs
    with pytest.raises(ValueError, match="contradicts"):
        LanguageModelSAERunnerConfig(
            verbose=False,
            logger=LoggingConfig(eval_every_n_wandb_logs=6),
            eval_every_n_wandb_logs=5,
        )


def test_logging_fields_follow_the_object() -> None:
    cfg = LanguageModelSAERunnerConfig(verbose=False, logger=LoggingConfig(wandb_log_frequency=3))
    assert cfg.wandb_project == "sae_lens_training"
    assert cfg.wandb_log_frequency == 3
    assert cfg.run_name is not None  # what the object leaves open is derived


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_in": 512}, "d_in=512 contradicts d_in=8"),  # also when it is the field's default
        ({"architecture": "gated"}, "architecture"),
        ({"activation_fn_kwargs": {"k": 9}}, "activation_fn_kwargs"),
        ({"wandb_project": "other"}, "wandb_project='other'"),
        ({"expansion_factor": 3}, "expansion_factor=3"),
        (
            {"device": "cuda", "sae": TopKTrainingSAEConfig(d_in=8, d_sae=16, k=3, device="mps")},
            "mps",
        ),
    ],
)
def test_a_flat_field_with_another_value_is_refused(fields: dict[str, Any], message: str) -> None:
    logger = LoggingConfig(log_to_wandb=False, wandb_project="one")
    arguments = {**RUN, "sae": CONFIGS[3], "logger": logger, **fields}
    with pytest.raises(ValueError, match=message):
        LanguageModelSAERunnerConfig(**arguments)


def test_a_flat_field_with_the_same_value_is_fine() -> None:
    cfg = LanguageModelSAERunnerConfig(sae=CONFIGS[3], d_in=8, architecture="topk", **RUN)
    assert cfg.d_in == 8


def test_the_device_of_the_run_is_that_of_the_sae() -> None:
    sae = TopKTrainingSAEConfig(d_in=8, d_sae=16, k=2)
    cfg = LanguageModelSAERunnerConfig(sae=sae, device="meta", **RUN)
    assert cfg.training_sae_config().device == "meta"
    on_meta = TopKTrainingSAEConfig(d_in=8, d_sae=16, k=2, device="meta")
    assert LanguageModelSAERunnerConfig(sae=on_meta, **RUN).device == "meta"


def test_a_flat_training_config_may_be_given_as_well() -> None:
    flat = TrainingSAEConfig.from_dict(flat_config_dict("gated", l1_coefficient=0.5))
    cfg = LanguageModelSAERunnerConfig(sae=flat, verbose=False)
    assert cfg.l1_coefficient == 0.5
    assert cfg.hook_name == flat.hook_name
    assert cfg.b_dec_init_method == "geometric_median"
    made = cfg.training_sae_config()
    assert made.form == "v5"
    assert made.normalize_sae_decoder == flat.normalize_sae_decoder


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="TopKTrainingSAEConfig"):
        LanguageModelSAERunnerConfig(sae=3, verbose=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="LoggingConfig"):
        LanguageModelSAERunnerConfig(logger=3, verbose=False)  # type: ignore[arg-type]


def test_trainer_config() -> None:
    cfg = SAETrainerConfig(total_training_samples=100, train_batch_size_samples=8)
    assert (cfg.adam_beta1, cfg.adam_beta2, cfg.lr) == (0.9, 0.999, 3e-4)
    assert cfg.lr_end == pytest.approx(3e-5)
    assert cfg.total_training_steps == 12
    assert cfg.logger.log_to_wandb is False
    assert cfg.checkpoint_path is None
    assert SAETrainerConfig(**cfg.to_dict()) == cfg
    with pytest.raises(ValueError, match="train_batch_size_samples is 0"):
        SAETrainerConfig(total_training_samples=100, train_batch_size_samples=0)


def test_the_training_part_of_a_runner_config() -> None:
    cfg = LanguageModelSAERunnerConfig(
        lr=0.5, training_tokens=96, finetuning_tokens=4, train_batch_size_tokens=10,
        wandb_log_frequency=7, verbose=False,
    )  # fmt: skip
    part = cfg.to_sae_trainer_config()
    assert (part.lr, part.total_training_samples, part.train_batch_size_samples) == (0.5, 100, 10)
    assert part.logger.wandb_log_frequency == 7
    assert part.logger.run_name == cfg.run_name
