"""Every training feature with every architecture: it trains, or is refused before it does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes import TrainingSAE
from sae_lens.training.trainer import SAETrainer
from tests.helpers import D_IN, D_SAE, activations, several_hooks_configs

N, N_STEPS = 8, 4

FEATURES: dict[str, Any] = {
    "lr_schedule": {"name": "cosineannealing"},
    "jumprelu_lr_factor": 0.5,
    "k_schedule": {"initial_k": 12, "steps": 0.5},
    "p_schedule": {},
    "sparsity": {"start": 2.0},
    "auxiliary": {"start": 2.0},
    "target_l0": {"target": 5},
    "aux_k": {"coefficient": 1.0},
    "ghost_gradients": True,
    "resampling": {"every": 3, "until": 1.0},
    "dead_after_tokens": 2 * N,
    "weight_average": {"decay": 0.5},
    "norm_filter": {"multiple": 1.2},
    "optimizer": {"path": "torch.optim.AdamW"},
    "gradient_accumulation_steps": 2,
    "max_gradient_norm": None,
}


def _configs() -> dict[str, Any]:
    names = [
        "standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk", "abstopk",
        "matching_pursuit",
        *(f"{kind}{name}" for name in ("transcoder", "skip_transcoder")
          for kind in ("", "jumprelu_", "topk_", "batchtopk_")),
    ]  # fmt: skip
    configs: dict[str, Any] = {}
    for name in names:
        fields: dict[str, Any] = {"k": 4} if "topk" in name else {}
        if name.startswith("matryoshka"):
            fields["matryoshka_widths"] = [16, D_SAE]
        configs[name] = get_sae_training_class(name).config_class(d_in=D_IN, d_sae=D_SAE, **fields)
    return configs | several_hooks_configs()


CONFIGS = _configs()


def _refused(architecture: str) -> set[str]:
    """What an architecture has no use for."""
    selects = "topk" in architecture
    pursues = architecture == "matching_pursuit"
    refused = set()
    if "jumprelu" not in architecture:
        refused |= {"jumprelu_lr_factor"}
    if not selects:
        refused |= {"k_schedule", "auxiliary"}
    if selects or pursues or "jumprelu" in architecture:
        refused |= {"p_schedule"}  # jumprelu has a p-norm only where its config asks for that loss
    if selects or pursues:
        refused |= {"sparsity", "target_l0", "aux_k"}
    if pursues:
        refused |= {"ghost_gradients", "resampling"}
    if "cross_layer" in architecture:
        refused |= {"resampling"}  # a feature has a decoder row for each layer
    return refused


@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_trains_or_says_why_not(architecture: str):
    refused = _refused(architecture)
    for name, value in FEATURES.items():
        is_weight = name in ("sparsity", "auxiliary")
        features = {"weight_schedules": {name: value}} if is_weight else {name: value}
        torch.manual_seed(0)
        sae: TrainingSAE = get_sae_training_class(architecture).sae_class(
            copy.deepcopy(CONFIGS[architecture])
        )
        width = sum(getattr(sae, "activation_widths", (D_IN,)))
        batches = [activations(N, width, seed=step) for step in range(130)]
        cfg = SAETrainerConfig(
            N_STEPS * N, N, features=features, dead_feature_window=0, lr=1e-2,
            n_batches_for_norm_estimate=4,
        )  # fmt: skip
        cfg.verbose = False  # type: ignore[attr-defined]
        before = sae.W_dec.detach().clone()
        if name in refused:
            with pytest.raises(ValueError, match="."):
                SAETrainer(cfg, sae, iter(batches))
            assert torch.equal(sae.W_dec, before)
            continue
        trained = SAETrainer(cfg, sae, iter(batches)).fit()
        assert not torch.equal(trained.W_dec, before), name
        assert all(torch.isfinite(value).all() for value in trained.parameters()), name
