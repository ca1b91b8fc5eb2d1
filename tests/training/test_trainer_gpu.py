from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_lens.config import SAETrainerConfig
from sae_lens.saes import (
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.training.nonfinite import NonFiniteLossError
from sae_lens.training.optim import is_fused
from sae_lens.training.trainer import SAETrainer

pytestmark = pytest.mark.gpu

D_IN, D_SAE, BATCH, STEPS = 32, 128, 64, 12
CONFIGS: list[Any] = [
    StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_coefficient=0.1),
    GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_coefficient=0.1),
    JumpReLUTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l0_coefficient=0.1),
    TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=8),
    BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=8),
]


def make_trainer(config: Any, device: str, batches: torch.Tensor, **fields: Any) -> SAETrainer:
    torch.manual_seed(0)
    sae = TrainingSAE(config).to(device)
    cfg = SAETrainerConfig(
        total_training_samples=BATCH * len(batches), train_batch_size_samples=BATCH, lr=1e-3,
        device=device, **fields,
    )  # fmt: skip
    return SAETrainer(cfg, sae, iter(batches))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c.architecture))
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_the_gpu_trains_as_the_cpu_does(config: Any, mode: str) -> None:
    batches = torch.randn(STEPS, BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    trained = []
    for device in ("cpu", "cuda"):
        trainer = make_trainer(config, device, batches, sparse_kernels=mode)
        assert is_fused(trainer.optimizer)
        trained.append(trainer.fit().state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name].cpu(), value, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c.architecture))
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_a_step_does_not_wait_for_the_gpu(config: Any, mode: str) -> None:
    batches = torch.randn(40, BATCH, D_IN, device="cuda")
    fields = {"sparse_kernels": mode, "dead_feature_window": 8}
    trainer = make_trainer(config, "cuda", batches, **fields)
    for batch in batches[:6]:
        trainer._train_step(trainer.sae, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[6:]:
            trainer._train_step(trainer.sae, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_loss_that_is_not_finite_is_noticed_later_but_changes_nothing() -> None:
    batches = torch.randn(STEPS, BATCH, D_IN)
    batches[5] = torch.nan
    good = make_trainer(CONFIGS[0], "cuda", batches[:5])
    good.fit()
    bad = make_trainer(CONFIGS[0], "cuda", batches)
    with pytest.raises(NonFiniteLossError, match="step 5"):
        bad.fit()
    torch.testing.assert_close(bad.sae.W_enc, good.sae.W_enc)


def test_autocast_on_the_gpu() -> None:
    trainer = make_trainer(CONFIGS[0], "cuda", torch.randn(STEPS, BATCH, D_IN), autocast=True)
    first = trainer._train_step(trainer.sae, torch.randn(BATCH, D_IN, device="cuda"))
    assert torch.isfinite(first.loss)
    trainer.fit()
