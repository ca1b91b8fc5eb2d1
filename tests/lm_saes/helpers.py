"""Tiny SAEs and streams for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_lens.lm_saes import TrainerConfig
from sae_lens.saes import (
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from tests.helpers import D_IN, D_SAE, activations

HOOK = "blocks.1.hook_resid_pre"
N_TOKENS = 32

_CONFIGS: dict[str, Any] = {
    "standard": (StandardTrainingSAEConfig, {}),
    "topk": (TopKTrainingSAEConfig, {"k": 4}),
    "jumprelu": (
        JumpReLUTrainingSAEConfig,
        {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_init_threshold": 0.05},
    ),
}


def tiny_sae(architecture: str = "standard", seed: int = 0, **fields: Any) -> TrainingSAE:
    torch.manual_seed(seed)
    cls, preset = _CONFIGS[architecture]
    cfg = cls(d_in=D_IN, d_sae=D_SAE, hook_name=HOOK, **{**preset, **fields})
    return TrainingSAE(cfg)


def batches(n: int, size: int = N_TOKENS, scale: float = 1.0) -> list[dict[str, Tensor]]:
    return [
        {
            "tokens": torch.zeros(size, dtype=torch.long),
            HOOK: scale * activations(size, seed=10 + i),
        }
        for i in range(n)
    ]


def config(n_steps: int = 10, **fields: Any) -> TrainerConfig:
    defaults: dict[str, Any] = {
        "total_training_tokens": n_steps * N_TOKENS,
        "amp_dtype": None,
        "lr": 1e-3,
        "lr_warm_up_steps": 0,
        "lr_cool_down_steps": 0,
        "n_checkpoints": 0,
        "log_frequency": 2,
        "sparsity_loss_type": "power",
        "l1_coefficient": 0.01,
        "l1_coefficient_warmup_steps": 0,
    }
    return TrainerConfig(**{**defaults, **fields})


class Recorder:
    """A stand-in for a W&B run."""

    id = "run-7"

    def __init__(self) -> None:
        self.logged: list[tuple[int | None, dict[str, Any]]] = []

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step, values))
