"""Two thousand steps, dense and sparse: the final losses agree within reordering's noise.

Training is chaotic: rounding errors grow. In float64, where they start at 1e-16, the two forms end
at the same loss to many digits. In float32 the yardsticks are dense runs in which the order of the
tokens of a batch, or that of the input dimensions, is reversed, and so that of additions alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.kernels.dispatch import has_sparse_kernels
from sae_lens.saes import (
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.saes.abs_topk import AbsTopKTrainingSAEConfig
from sae_lens.saes.batch_topk import BatchTopKTrainingSAEConfig
from sae_lens.saes.matryoshka_batch_topk import MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from tests.helpers import ARCHITECTURES, flat_config_dict

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


_SIZE: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
_FLAT = {**_SIZE, "l1_coefficient": 0.05, "normalize_sae_decoder": True}
K = 5
CASES: dict[str, Any] = {
    **{
        f"{name}, 5.x formulas": TrainingSAEConfig.from_dict(flat_config_dict(name, **_FLAT))
        for name in ARCHITECTURES
    },
    "standard": StandardTrainingSAEConfig(**_SIZE, l1_coefficient=0.05),
    "gated": GatedTrainingSAEConfig(**_SIZE, l1_coefficient=0.05),
    "jumprelu": JumpReLUTrainingSAEConfig(**_SIZE, l0_coefficient=0.02),
    "jumprelu, tanh": JumpReLUTrainingSAEConfig(
        **_SIZE,
        l0_coefficient=0.02,
        jumprelu_sparsity_loss_mode="tanh",
        jumprelu_ste_to_input=True,
        pre_act_loss_coefficient=3e-4,
    ),
    "topk": TopKTrainingSAEConfig(**_SIZE, k=K),
    "batchtopk": BatchTopKTrainingSAEConfig(**_SIZE, k=K),
    "matryoshka_batchtopk": MatryoshkaBatchTopKTrainingSAEConfig(
        **_SIZE, k=K, matryoshka_widths=[48, D_SAE]
    ),
    "abstopk": AbsTopKTrainingSAEConfig(**_SIZE, k=K),
}


class Run(NamedTuple):
    """Means over the last 500 steps, and the loss of the first logged step."""

    loss: float
    l0: float
    first: float


def train(
    case: str, mode: str, log: Path, dtype: str = "float32", reverses: int | None = None
) -> Run:
    torch.manual_seed(0)
    config = copy.deepcopy(CASES[case])
    config.dtype = dtype
    sae = TrainingSAE(config).to(dtype=getattr(torch, dtype))  # thresholds, too
    if reverses == 1:
        with torch.no_grad():
            sae.W_enc.copy_(sae.W_enc.flip(0))
            sae.W_dec.copy_(sae.W_dec.flip(1))
    cfg = SAETrainerConfig(
        total_training_samples=BATCH * N_STEPS,
        train_batch_size_samples=BATCH,
        lr=1e-3,
        lr_warm_up_steps=50,
        dead_feature_window=200,
        sparse_kernels=mode,
        logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=5, log_to_jsonl=str(log)),
    )
    batches = (x if reverses is None else x.flip(reverses) for x in planted())
    SAETrainer(cfg, sae, batches).fit()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    entries = [entry for entry in entries if "losses/overall_loss" in entry]
    log.unlink()
    assert len(entries) == N_STEPS // 5
    assert any(e.get("metrics/sparse_kernels") == 1.0 for e in entries) == (mode == "sparse")
    losses, l0s = ([e[name] for e in entries] for name in ("losses/overall_loss", "metrics/l0"))
    return Run(mean(losses[-100:]), mean(l0s[-100:]), losses[0])


@pytest.mark.parametrize("case", CASES)
def test_final_losses_agree(case: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    dense, sparse = (train(case, mode, log, "float64") for mode in ("dense", "sparse"))
    print(f"{case}, float64: {dense}, {sparse}")
    assert sparse.loss == pytest.approx(dense.loss, rel=1e-3)
    assert sparse.l0 == pytest.approx(dense.l0, rel=1e-3)
    assert dense.loss < 0.5 * dense.first  # it has learned something

    dense, sparse = (train(case, mode, log) for mode in ("dense", "sparse"))
    reordered = [train(case, "dense", log, reverses=dimension) for dimension in (0, 1)]
    print(f"{case}, float32: {dense}, {sparse}, reordered {reordered}")
    noise = max(abs(other.loss - dense.loss) for other in reordered)
    assert sparse.loss == pytest.approx(dense.loss, abs=0.01 * dense.loss + 2 * noise)
