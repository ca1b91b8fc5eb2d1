"""Short trainings on batches, for the tests of training features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_lens.config import SAETrainerConfig
from sae_lens.saes import StandardTrainingSAEConfig, TrainingSAE
from sae_lens.training.trainer import SAETrainer
from tests.helpers import D_IN, D_SAE, activations

N = 16


def make_sae(cls: Any = StandardTrainingSAEConfig, **fields: Any) -> TrainingSAE:
    """A tiny SAE, always the same."""
    torch.manual_seed(0)
    return TrainingSAE(cls(d_in=D_IN, d_sae=D_SAE, **fields))


def trainer(
    sae: TrainingSAE,
    features: Any,
    n_steps: int = 12,
    batch: int = N,
    data: Iterable[Tensor] | None = None,
    **fields: Any,
) -> SAETrainer:
    """A trainer of `n_steps` on `data`, or activations that are the same for all."""
    cfg = SAETrainerConfig(
        total_training_samples=n_steps * batch,
        train_batch_size_samples=batch,
        features=features,
        **{"lr": 1e-2, **fields},
    )
    width = getattr(sae.cfg, "d_out", None)
    width = D_IN if width is None else D_IN + width
    if data is None:
        data = (activations(batch, width, seed=step) for step in range(n_steps))
    return SAETrainer(cfg, sae, iter(data))


def recorded(run: SAETrainer, read: Any) -> list[Any]:
    """What `read` makes of the output of each step of a training."""
    seen: list[Any] = []
    real = run._train_step

    def step(*args: Any, **kwargs: Any) -> Any:
        output = real(*args, **kwargs)
        seen.append(read(output))
        return output

    run._train_step = step  # type: ignore[method-assign]
    run.fit()
    return seen
