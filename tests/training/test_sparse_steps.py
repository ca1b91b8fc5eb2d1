"""The trainer on sparse steps: the same training, logged as what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.kernels.dispatch import has_sparse_kernels
from sae_lens.saes.training import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from tests.helpers import make_training_sae

pytestmark = pytest.mark.skipif(
    not has_sparse_kernels(torch.device("cpu"), torch.float32),
    reason="this torch has no sparse products for the CPU (built without MKL)",
)

BATCH, N_STEPS = 16, 30


def batches(d_in: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    while True:
        yield torch.randn(BATCH, d_in, generator=generator, dtype=torch.float64)


def train(architecture: str, mode: str, log: Path) -> tuple[SAETrainer, list[dict[str, Any]]]:
    sae = make_training_sae(
        architecture, dtype="float64", normalize_sae_decoder=True, jumprelu_bandwidth=0.05
    )
    cfg = SAETrainerConfig(
        total_training_samples=BATCH * N_STEPS,
        train_batch_size_samples=BATCH,
        lr=1e-3,
        dead_feature_window=5,
        sparse_kernels=mode,
        logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=5, log_to_jsonl=str(log)),
    )
    trainer = SAETrainer(cfg, sae, batches(sae.cfg.d_in))
    trainer.fit()
    return trainer, [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_both_forms_train_the_same(architecture: str, tmp_path: Path) -> None:
    dense, dense_log = train(architecture, "dense", tmp_path / "dense.jsonl")
    sparse, sparse_log = train(architecture, "sparse", tmp_path / "sparse.jsonl")
    for name, value in dense.sae.state_dict().items():
        torch.testing.assert_close(
            sparse.sae.state_dict()[name], value, atol=1e-8, rtol=1e-6, msg=name
        )
    assert torch.equal(dense.act_freq_scores, sparse.act_freq_scores)
    assert torch.equal(dense.n_forward_passes_since_fired, sparse.n_forward_passes_since_fired)
    assert len(sparse_log) == len(dense_log)
    for one, other in zip(sparse_log, dense_log, strict=True):
        assert one.keys() - other.keys() <= {"metrics/sparse_kernels", "metrics/active_density"}
        for name in ("losses/overall_loss", "metrics/l0", "metrics/explained_variance"):
            if name in other:
                assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-9)
    assert any(one.get("metrics/sparse_kernels") == 1.0 for one in sparse_log)
    assert not any("metrics/sparse_kernels" in one for one in dense_log)


def test_an_explicit_form_of_the_sae_is_kept(tmp_path: Path) -> None:
    sae = make_training_sae()
    sae.sparse_kernels = "dense"
    cfg = SAETrainerConfig(total_training_samples=BATCH, train_batch_size_samples=BATCH)
    assert isinstance(SAETrainer(cfg, sae, batches(sae.cfg.d_in)).sae, TrainingSAE)
    assert sae.sparse_kernels == "dense"


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are auto, dense, sparse"):
        SAETrainerConfig(
            total_training_samples=1, train_batch_size_samples=1, sparse_kernels="quick"
        )
