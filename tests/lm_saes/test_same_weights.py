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
    "topk": (TopKTrainingSAEConfig(**_SIZE, k=4), {}),
}


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
@pytest.mark.parametrize("name", CASES)
def test_both_routes_end_at_the_same_weights_bit_for_bit(name: str, kernels: Any, tmp_path: Path):
    sae_cfg, fields = CASES[name]
    cfg = LanguageModelSAERunnerConfig(
        sae=copy.deepcopy(sae_cfg),
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
            l1_coefficient_warmup_steps=8,
            amp_dtype=None,
            n_checkpoints=0,
            **fields,
        )
    )
    start = {key: value.clone() for key, value in twin.state_dict().items()}
    assert trainer.fit(twin, batches) is None
    for key, value in trained.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key
    for sae in (trained, twin):
        assert sae._sparse_choice.is_sparse == (kernels == "sparse")
    assert (start["W_dec"] - twin.W_dec).abs().max() > 1e-3
