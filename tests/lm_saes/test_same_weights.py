"""A run of `SAETrainingRunner` and one of `Trainer` with the same settings: the same weights.

Bit for bit, in the dense form and in that of active entries, since both run the same passes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.lm_saes import Trainer, TrainerConfig
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes import (
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.training.features import LearningRateSchedule, OptimizerChoice, TrainingFeatures
from tests.helpers import D_IN, tiny_model

HOOK = "blocks.0.hook_resid_pre"
N_STEPS, N_TOKENS = 16, 32
_SIZE = {"d_in": D_IN, "d_sae": 32, "apply_b_dec_to_input": False}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "relu": (
        StandardTrainingSAEConfig(**_SIZE, l1_coefficient=0.02, l1_warm_up_steps=8),
        {"sparsity_loss_type": "power", "l1_coefficient": 0.02},
    ),
    "jumprelu": (
        JumpReLUTrainingSAEConfig(
            **_SIZE,
            jumprelu_sparsity_loss_mode="tanh",
            l0_coefficient=0.02,
            l0_warm_up_steps=8,
            jumprelu_init_threshold=0.001,
        ),
        {"sparsity_loss_type": "tanh", "l1_coefficient": 0.02},
    ),
    "jumprelu, L0": (
        JumpReLUTrainingSAEConfig(
            **_SIZE, l0_coefficient=0.02, l0_warm_up_steps=8, jumprelu_bandwidth=0.5
        ),
        {"sparsity_loss_type": "step", "l1_coefficient": 0.02},
    ),
    "jumprelu, towards an L0": (
        JumpReLUTrainingSAEConfig(
            **_SIZE,
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=5,
            l0_coefficient=0.02,
            l0_warm_up_steps=8,
            jumprelu_bandwidth=0.5,
        ),
        {"sparsity_loss_type": "quadratic", "l1_coefficient": 0.02},
    ),
    "topk": (TopKTrainingSAEConfig(**_SIZE, k=4), {}),
}


# Features under their names here, and the fields of a `TrainerConfig` that mean the same.
FEATURES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "accumulation, with a batch left over": (
        "relu",
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 3},
    ),
    "a schedule of k": (
        "topk",
        {"k_schedule": {"initial_k": 20, "steps": 8, "cold_steps": 2, "kind": "exponential"}},
        {
            "initial_k": 20,
            "k_warmup_steps": 8,
            "k_cold_booting_steps": 2,
            "k_schedule_type": "exponential",
        },
    ),
    "rates of thresholds": (
        "jumprelu",
        {"jumprelu_lr_factor": 0.25},
        {"jumprelu_lr_factor": 0.25},
    ),
    "aux-k, dead by tokens": (
        "topk",
        {"aux_k": {"coefficient": 0.5, "k": 7}, "dead_after_tokens": 2 * N_TOKENS},
        {"auxk_coefficient": 0.5, "k_aux": 7, "dead_threshold": 2 * N_TOKENS},
    ),
}
# Those that `TrainerConfig` has no fields for, given to both. (Resampling draws random numbers.)
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "averaged weights": ("relu", {"weight_average": {"decay": 0.7}}),
    "a target": ("jumprelu", {"target_l0": {"target": 5}}),
    "p and a weight": (
        "relu",
        {"p_schedule": {"end": 0.5}, "weight_schedules": {"sparsity": {"start": 3.0}}},
    ),
    "ghost gradients": ("relu", {"ghost_gradients": True, "dead_after_tokens": N_TOKENS}),
}


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
@pytest.mark.parametrize("name", CASES)
def test_both_routes_end_at_the_same_weights_bit_for_bit(name: str, kernels: Any, tmp_path: Path):
    both_routes(tmp_path, name, kernels, {}, {}, {})


@pytest.mark.parametrize("feature", FEATURES)
def test_so_they_do_with_features_under_either_name(feature: str, tmp_path: Path):
    name, here, there = FEATURES[feature]
    n_dead = 9 if "dead" in feature else 0
    trained = both_routes(tmp_path, name, "dense", here, there, {}, n_dead)
    assert not torch.equal(trained, both_routes(tmp_path, name, "dense", {}, {}, {}, n_dead))


@pytest.mark.parametrize("feature", SHARED)
def test_so_they_do_with_features_given_to_both(feature: str, tmp_path: Path):
    name, features = SHARED[feature]
    there = {"dead_threshold": features["dead_after_tokens"]} if "dead" in str(features) else {}
    shared = {key: value for key, value in features.items() if key != "dead_after_tokens"}
    n_dead = 9 if there else 0
    trained = both_routes(tmp_path, name, "dense", features, there, shared, n_dead)
    assert not torch.equal(trained, both_routes(tmp_path, name, "dense", {}, {}, {}, n_dead))


def both_routes(
    tmp_path: Path,
    name: str,
    kernels: Any,
    here: dict[str, Any],
    there: dict[str, Any],
    shared: dict[str, Any],
    n_dead: int = 0,
) -> torch.Tensor:
    """Train by both, with features of the run, fields of the trainer's config, and its features.

    Returns the decoder.
    """
    sae_cfg, fields = CASES[name]
    sae_cfg = copy.deepcopy(sae_cfg)
    fields = {**fields, "l1_coefficient_warmup_steps": 8, **there}
    if name == "topk":
        sae_cfg.aux_loss_coefficient = 0.0  # there it is the trainer's
    if "weight_schedules" in here:  # a schedule of the same coefficient
        sae_cfg.l1_warm_up_steps = fields["l1_coefficient_warmup_steps"] = 0
    cfg = LanguageModelSAERunnerConfig(
        sae=sae_cfg,
        model_name="tiny",
        hook_name=HOOK,
        context_size=16,
        train_batch_size_tokens=N_TOKENS,
        store_batch_size_prompts=4,
        n_batches_in_buffer=4,
        training_tokens=N_STEPS * N_TOKENS,
        lr=1e-3,
        adam_beta1=0.9,
        adam_beta2=0.99,
        sparse_kernels=kernels,
        features=TrainingFeatures(
            lr_schedule=LearningRateSchedule("constantwithwarmup", 4, 5, 0.0),
            optimizer=OptimizerChoice("torch.optim.Adam", {"foreach": True}),
            max_gradient_norm=None,
            **here,
        ),
        log_to_wandb=False,
        verbose=False,
        checkpoint_path=str(tmp_path),
        model_from_pretrained_kwargs={},
    )
    generator = torch.Generator().manual_seed(0)
    rows = Dataset.from_dict(
        {"tokens": torch.randint(2, 32, (60, 16), generator=generator).tolist()}
    )
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=tiny_model())
    with torch.no_grad():
        runner.sae.b_enc[:n_dead] = -3
    twin = copy.deepcopy(runner.sae)
    twin.sparse_kernels = kernels
    batches = []
    next_batch = runner.activations_store.next_batch

    def recorded() -> torch.Tensor:
        batch = next_batch()
        batches.append({"tokens": torch.zeros(len(batch)), HOOK: batch[:, 0].clone()})
        return batch

    runner.activations_store.next_batch = recorded  # type: ignore[method-assign]
    trained = runner.run()
    assert len(batches) == N_STEPS

    trainer = Trainer(
        TrainerConfig(
            total_training_tokens=N_STEPS * N_TOKENS,
            lr=1e-3,
            lr_warm_up_steps=4,
            lr_cool_down_steps=5,
            lr_end_ratio=0.0,
            betas=(0.9, 0.99),
            amp_dtype=None,
            n_checkpoints=0,
            **fields,
        ),
        shared,
    )
    start = {key: value.clone() for key, value in twin.state_dict().items()}
    assert trainer.fit(twin, batches) is None
    for key, value in trained.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key
    for sae in (trained, twin):
        assert sae._sparse_choice.is_sparse == (kernels == "sparse")
    assert (start["W_dec"] - twin.W_dec).abs().max() > 1e-3
    return trained.W_dec.detach()
