"""Two thousand steps, dense and sparse: the final losses agree within reordering's noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import Tensor

from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.kernels.dispatch import has_sparse_kernels
from sae_lens.saes import TrainingSAE, TrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from tests.helpers import flat_config_dict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not has_sparse_kernels(torch.device("cpu"), torch.float32),
        reason="this torch has no sparse products for the CPU (built without MKL)",
    ),
]

D_IN, D_SAE, BATCH, N_STEPS = 32, 192, 128, 2000


def planted(n_features: int = 128, n_active: int = 4) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(n_features, D_IN, generator=generator)
    directions = torch.nn.functional.normalize(directions, dim=1)
    while True:
        chosen = torch.randint(0, n_features, (BATCH, n_active), generator=generator)
        strengths = 1 + torch.rand(BATCH, n_active, 1, generator=generator)
        yield (directions[chosen] * strengths).sum(1)


def curve(architecture: str, mode: str, log: Path) -> tuple[list[float], list[float]]:
    """Losses and numbers of active features of the logged steps."""
    torch.manual_seed(0)
    fields = {"d_in": D_IN, "d_sae": D_SAE, "l1_coefficient": 0.05, "normalize_sae_decoder": True}
    sae = TrainingSAE(TrainingSAEConfig.from_dict(flat_config_dict(architecture, **fields)))
    cfg = SAETrainerConfig(
        total_training_samples=BATCH * N_STEPS,
        train_batch_size_samples=BATCH,
        lr=1e-3,
        lr_warm_up_steps=50,
        sparse_kernels=mode,
        logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=5, log_to_jsonl=str(log)),
    )
    SAETrainer(cfg, sae, planted()).fit()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    entries = [entry for entry in entries if "losses/overall_loss" in entry]
    return tuple([e[name] for e in entries] for name in ("losses/overall_loss", "metrics/l0"))  # type: ignore[return-value]


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_final_losses_agree(architecture: str, tmp_path: Path) -> None:
    dense, dense_l0 = curve(architecture, "dense", tmp_path / "dense.jsonl")
    sparse, sparse_l0 = curve(architecture, "sparse", tmp_path / "sparse.jsonl")
    assert len(dense) == len(sparse) == N_STEPS // 5
    # the last 500 steps, on the same batches
    assert mean(sparse[-100:]) == pytest.approx(mean(dense[-100:]), rel=0.01)
    assert mean(sparse_l0[-100:]) == pytest.approx(mean(dense_l0[-100:]), rel=0.02)
    assert mean(dense[-100:]) < 0.5 * dense[0]  # it has learned something
