"""Training features that make no sense, or not together: refused before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sae_lens.config import LanguageModelSAERunnerConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    MatchingPursuitTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.training.features import TrainingFeatures
from tests.helpers import D_IN, D_SAE
from tests.training.runs_on_batches import make_sae, trainer

ALONE: list[tuple[dict[str, Any], str]] = [
    ({"no_such": 1}, "features has no no_such; it has lr_schedule"),
    ({"target_l0": {"goal": 1}}, r"features\.target_l0 has no goal"),
    ({"target_l0": {}}, r"features\.target_l0 is incomplete"),
    ({"target_l0": {"target": 0}}, "must be above 0"),
    ({"target_l0": {"target": float("nan")}}, "must be above 0"),
    ({"target_l0": {"target": 5, "max_rise": 0}}, "must be above 0"),
    ({"target_l0": {"target": 5, "smoothing": 1}}, r"smoothing must lie in \[0, 1\)"),
    ({"target_l0": {"target": 5, "start": 20, "max_factor": 10}}, "the limits of the coefficient"),
    ({"target_l0": {"target": 5, "reach_at": 1.5}}, "target_l0.reach_at is 1.5; a float is"),
    (
        {"target_l0": {"target": 5}, "weight_schedules": {"sparsity": {}}},
        "both move the sparsity coefficient",
    ),
    ({"k_schedule": {"initial_k": 8, "steps": 1.5}}, "a float is a share"),
    ({"k_schedule": {"initial_k": 8, "cold_steps": 1.01}}, "a float is a share"),
    ({"k_schedule": {"initial_k": 8, "kind": "cubic"}}, "allowed are linear, exponential"),
    ({"p_schedule": {"end": 0}}, "p must stay above 0"),
    ({"p_schedule": {"first_step": 1.2}}, "a float is a share"),
    ({"p_schedule": {"steps": -3}}, "cannot be negative"),
    ({"weight_schedules": {"l1": {}}}, "names l1; there are sparsity, auxiliary, pre_act"),
    ({"weight_schedules": {"sparsity": {"steps": 2.0}}}, "a float is a share"),
    ({"weight_schedules": {"sparsity": {"start": -1}}}, "neither may be below 0"),
    ({"weight_schedules": {"sparsity": {"kind": "cubic"}}}, "allowed are linear, exponential"),
    ({"lr_schedule": {"name": "step"}}, "Unsupported scheduler: step"),
    ({"lr_schedule": {"warm_up_steps": 1.5}}, "a float is a share"),
    ({"lr_schedule": {"end_ratio": 1.5}}, "lr_end_ratio is 1.5"),
    ({"lr_schedule": {"name": "exponentialwarmup", "end_ratio": 0.0}}, "one above 0"),
    ({"lr_schedule": {"name": "constant", "warm_up_steps": 3}}, "constant has no warm-up"),
    (
        {"lr_schedule": {"name": "linearwarmupdecay", "cool_down_steps": 3}},
        "only constantwithwarmup cools down",
    ),
    ({"jumprelu_lr_factor": 0}, "jumprelu_lr_factor is 0; it must be above 0"),
    ({"aux_k": {"coefficient": 0}}, "must be above 0"),
    ({"aux_k": {"k": 0}}, "k at least 1"),
    ({"dead_after_tokens": 0}, "above 0, or None"),
    ({"weight_average": {"decay": 1.0}}, r"must lie in \[0, 1\)"),
    ({"resampling": {"every": 0}}, "at least 1"),
    ({"resampling": {"every": 2, "until": 1.5}}, "a float is a share"),
    ({"resampling": {"every": 2, "encoder_norm": 0}}, "must be above 0"),
    ({"norm_filter": {"multiple": 0.5}}, "above 1"),
    ({"whitening_shrinkage": 1.5}, r"must lie in \[0, 1\]"),
    ({"gradient_accumulation_steps": 0}, "at least 1"),
    ({"max_gradient_norm": 0}, "above 0, or None"),
    ({"checkpoint_spacing": "cubic"}, "allowed are linear, log"),
    ({"initial_weights": {"decoder_bound": 0}}, "must be above 0"),
    ({"initial_weights": {"active_subspace": 0}}, "at least 1"),
    (
        {"initial_weights": {"decoder_bound": 1.0, "decoder_from_mlp_layer": 0}},
        "both set the decoder",
    ),
    (
        {"initial_weights": {"encoder_bound": 1.0, "encoder_as_decoder_transpose": 1.0}},
        "both set the encoder",
    ),
]


@pytest.mark.parametrize(("features", "message"), ALONE)
def test_settings_that_make_no_sense(features: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SAETrainerConfig(64, 16, features=features)
    with pytest.raises(ValueError, match=message):
        LanguageModelSAERunnerConfig(features=features, verbose=False)


@pytest.mark.parametrize("value", ["often", 3, [1]])
def test_a_part_of_another_type(value: Any):
    with pytest.raises(TypeError, match=r"features\.target_l0 must be a TargetL0"):
        TrainingFeatures(target_l0=value)


STANDARD = StandardTrainingSAEConfig
TOPK = (TopKTrainingSAEConfig, {"k": 4})
WITH_AN_SAE: list[tuple[Any, dict[str, Any], str]] = [
    (STANDARD, {"target_l0": {"target": D_SAE + 1}}, "there are only 48 features"),
    ((STANDARD, {"l1_coefficient": 0.0}), {"target_l0": {"target": 5}}, "coefficient, which is 0"),
    ((STANDARD, {"l1_coefficient": 0.0}), {"weight_schedules": {"sparsity": {}}}, "weight is 0"),
    (STANDARD, {"optimizer": {"path": "torch.optim.LBFGS"}}, "needs no closure"),
    (
        STANDARD,
        {"optimizer": {"path": "torch.optim.SGD", "options": {"speed": 2}}},
        "does not take the options .*speed",
    ),
    (STANDARD, {"k_schedule": {"initial_k": 8}}, "select k features"),
    (STANDARD, {"weight_schedules": {"auxiliary": {}}}, "nothing to scale"),
    (STANDARD, {"jumprelu_lr_factor": 0.5}, "SAEs learn none"),
    (STANDARD, {"resampling": {"every": 20}}, "nothing would ever be resampled"),
    (STANDARD, {"initial_weights": {}}, "for runs that make their SAE"),
    (
        STANDARD,
        {"lr_schedule": {"warm_up_steps": 0.6, "cool_down_steps": 0.5}},
        "7 steps of warm-up and 6 of cool-down do not fit into 12 training steps",
    ),
    (
        STANDARD,
        {"lr_schedule": {"name": "cosineannealingwarmup", "warm_up_steps": 12}},
        "leaves none to fall in",
    ),
    (STANDARD, {"p_schedule": {"first_step": 10, "steps": 5}}, "but the training has only 12"),
    ((STANDARD, {"sparsity_loss": "tanh"}), {"p_schedule": {}}, "needs a sparsity loss 'power'"),
    ((STANDARD, {"use_ghost_grads": True}), {"ghost_gradients": True}, "are the same term"),
    (TOPK, {"target_l0": {"target": 4}}, "Their k is their L0"),
    (TOPK, {"p_schedule": {}}, "needs a sparsity loss 'power'"),
    (TOPK, {"k_schedule": {"initial_k": 2}}, "between the SAE's k, 4,"),
    (TOPK, {"k_schedule": {"initial_k": D_SAE + 1}}, "its number of features, 48"),
    (TOPK, {"k_schedule": {"initial_k": 9, "steps": 0.7, "cold_steps": 0.5}}, "but the training"),
    (TOPK, {"weight_schedules": {"sparsity": {}}}, "nothing to scale"),
    (TOPK, {"aux_k": {}}, "an aux-k term of its own"),
    (
        (JumpReLUTrainingSAEConfig, {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 4}),
        {"target_l0": {"target": 4}},
        "both lead to a target L0",
    ),
    (MatchingPursuitTrainingSAEConfig, {"ghost_gradients": True}, "have none"),
    (MatchingPursuitTrainingSAEConfig, {"resampling": {"every": 2}}, "needs an encoder"),
]


@pytest.mark.parametrize(("sae", "features", "message"), WITH_AN_SAE)
def test_features_that_do_not_go_with_the_sae_or_the_length(
    sae: Any, features: dict[str, Any], message: str
):
    cls, fields = sae if isinstance(sae, tuple) else (sae, {})
    with pytest.raises(ValueError, match=message):
        trainer(make_sae(cls, **fields), features)


RUNS: list[tuple[dict[str, Any], str]] = [
    (
        {"features": {"lr_schedule": {}}, "lr_warm_up_steps": 5},
        "lr_warm_up_steps=5 and features.lr_schedule are both",
    ),
    (
        {"features": {"lr_schedule": {}}, "lr_scheduler_name": "cosineannealing"},
        "lr_scheduler_name='cosineannealing' and",
    ),
    ({"lr_warm_up_steps": 1.5}, "lr_warm_up_steps is 1.5; a float is a share"),
    ({"lr_decay_steps": 1.5}, "lr_decay_steps is 1.5; a float is a share"),
    ({"l1_warm_up_steps": 1.5}, "l1_warm_up_steps is 1.5; a float is a share"),
    ({"l1_warm_up_steps": -5}, "l1_warm_up_steps is -5; a number of steps cannot be negative"),
    ({"features": {"lr_schedule": {}}, "lr_end": 1e-9}, "lr_end=1e-09 and"),
    ({"features": {"lr_schedule": {"warm_up_steps": 10_000}}}, "do not fit into 488"),
    ({"features": {"target_l0": {"target": 3000}}}, "there are only 2048 features"),
    (
        {"features": {"weight_schedules": {"sparsity": {}}}, "l1_warm_up_steps": 10},
        "both schedules of the sparsity coefficient",
    ),
    (
        {"features": {"initial_weights": {}}, "from_pretrained_path": "somewhere"},
        "contradict each other: the weights are those of the trained SAE",
    ),
    (
        {"features": {"initial_weights": {"search_decoder_norm": True}}},
        "unit rows would undo",
    ),
    ({"architecture": "topk", "activation_fn_kwargs": {"k": 2049}}, "says k=2049"),
    ({"architecture": "topk", "activation_fn_kwargs": {"k": 0}}, "says k=0"),
    ({"architecture": "topk", "activation_fn_kwargs": {"k": "3"}}, "says k='3'"),
    ({"architecture": "topk", "activation_fn_kwargs": {"k": 2.5}}, "a whole number"),
    ({"architecture": "jumprelu", "jumprelu_bandwidth": 0.0}, "must be above 0"),
    ({"architecture": "jumprelu", "jumprelu_init_threshold": 0.0}, "must be above 0"),
    ({"lr": -1.0}, "lr is -1.0; it must be a finite number"),
    ({"lr": float("nan")}, "lr is nan"),
    ({"adam_beta1": 1.0}, r"adam_beta1 is 1.0; it must lie in \[0, 1\)"),
    ({"l1_coefficient": -1.0}, "l1_coefficient is -1.0"),
    ({"l1_coefficient": float("inf")}, "l1_coefficient is inf"),
    ({"noise_scale": -0.5}, "noise_scale is -0.5"),
    (
        {"n_eval_batches": 0, "keep_best_metric": "a/b", "eval_every_n_wandb_logs": 1},
        "n_eval_batches is 0; it must be at least 1",
    ),
    ({"eval_batch_size_prompts": 0}, "eval_batch_size_prompts is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("fields", "message"), RUNS)
def test_runs_that_contradict_themselves(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        LanguageModelSAERunnerConfig(verbose=False, log_to_wandb=False, **fields)


SAES: list[tuple[Any, dict[str, Any], str]] = [
    (TopKTrainingSAEConfig, {"k": D_SAE + 1}, "between 1 and the number of features, 48"),
    (BatchTopKTrainingSAEConfig, {"k": D_SAE + 0.5}, "between 1 and the number of features, 48"),
    (TopKTrainingSAEConfig, {"k": 2.5}, "a whole number"),
    (TopKTrainingSAEConfig, {"k": "3"}, "k is '3'; it must be a number"),
    (BatchTopKTrainingSAEConfig, {"k": True}, "k is True; it must be a number"),
    (MatryoshkaBatchTopKTrainingSAEConfig, {"k": 4, "matryoshka_widths": [4.5]}, "whole numbers"),
    (MatryoshkaBatchTopKTrainingSAEConfig, {"k": 4, "matryoshka_widths": ["a"]}, "whole numbers"),
    (MatchingPursuitTrainingSAEConfig, {"max_iterations": 0}, "max_iterations is 0"),
    (MatchingPursuitTrainingSAEConfig, {"max_iterations": 1.5}, "max_iterations is 1.5"),
    (MatchingPursuitTrainingSAEConfig, {"residual_threshold": -1.0}, "is at least 0"),
    (JumpReLUTrainingSAEConfig, {"jumprelu_bandwidth": -0.1}, "must be above 0"),
    (JumpReLUTrainingSAEConfig, {"jumprelu_init_threshold": -0.1}, "at least 0"),
    (
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": 4, "matryoshka_widths": [16, 8, D_SAE]},
        "the widths must increase",
    ),
    (
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": 4, "matryoshka_widths": [8, 8, D_SAE]},
        "the widths must increase",
    ),
    (
        JumpReLUTrainingSAEConfig,
        {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": D_SAE + 1},
        r"needs target_l0 in \(0, 48\]",
    ),
]


@pytest.mark.parametrize(("cls", "fields", "message"), SAES)
def test_saes_that_cannot_be(cls: Any, fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        cls(d_in=D_IN, d_sae=D_SAE, **fields)


def test_numbers_of_numpy_are_numbers():
    size = {"d_in": D_IN, "d_sae": D_SAE}
    assert TopKTrainingSAEConfig(**size, k=np.int64(3)).k == 3
    widths = list(np.array([8, D_SAE]))
    cfg = MatryoshkaBatchTopKTrainingSAEConfig(**size, k=np.float32(2.5), matryoshka_widths=widths)
    assert cfg.matryoshka_widths == [8, D_SAE]
    MatchingPursuitTrainingSAEConfig(**size, max_iterations=np.int32(4))


@pytest.mark.parametrize("kind", ["", "skip_"])
def test_an_output_hook_before_the_input_hook(kind: str):
    config = get_sae_training_class(f"{kind}transcoder").config_class
    with pytest.raises(ValueError, match="has to come first"):
        config(
            d_in=D_IN,
            d_sae=D_SAE,
            hook_name="blocks.2.hook_resid_pre",
            hook_name_out="blocks.1.hook_mlp_out",
        )


BATCHES: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1.0}, "lr is -1.0"),
    ({"adam_beta2": 2.0}, "adam_beta2 is 2.0"),
    ({"n_checkpoints": -1}, "n_checkpoints is -1"),
    ({"n_restart_cycles": -1}, "n_restart_cycles is -1"),
    ({"n_restart_cycles": 0, "lr_scheduler_name": "cosineannealingwarmrestarts"}, "cycles is 0"),
]


@pytest.mark.parametrize(("fields", "message"), BATCHES)
def test_trainings_on_batches_that_cannot_be(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SAETrainerConfig(64, 16, **fields)


def test_a_warm_up_longer_than_the_training_is_pointed_out(caplog: Any):
    trainer(make_sae(STANDARD, l1_warm_up_steps=48), {})
    assert "l1_warm_up_steps=48 is longer than the training, 12 steps" in caplog.text
    assert "only rises to 25% of its value" in caplog.text


def test_float16_is_pointed_out(caplog: Any):
    trainer(make_sae(STANDARD, dtype="bfloat16"), {})
    assert caplog.text == ""
    trainer(make_sae(STANDARD, dtype="float16"), {})
    assert "dtype is float16, in which Adam's second moments underflow" in caplog.text
