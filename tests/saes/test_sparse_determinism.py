"""Sparse steps on several threads give the same bits each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sae_lens.registry import get_sae_training_class
from sae_lens.saes import TrainingSAE, TrainStepInput

SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {},
    "gated": {},
    "jumprelu": {"jumprelu_init_threshold": 0.3, "jumprelu_bandwidth": 0.2},
    "topk": {"k": 16},
    "batchtopk": {"k": 16},
}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("architecture", SETTINGS)
def test_gradients_are_the_same_each_time(architecture: str) -> None:
    config_class = get_sae_training_class(architecture).config_class
    torch.manual_seed(0)
    sae = TrainingSAE(config_class(d_in=64, d_sae=1024, **SETTINGS[architecture])).train()
    sae.sparse_kernels = "sparse"
    x = torch.randn(512, 64)
    first: dict[str, torch.Tensor] = {}
    for _ in range(15):
        sae.zero_grad()
        step_input = TrainStepInput(sae_in=x, coefficients={"l0": 1.0, "l1": 1.0})
        sae.training_forward_pass(step_input).loss.backward()
        found = {n: p.grad.clone() for n, p in sae.named_parameters() if p.grad is not None}
        first = first or found
        assert all(torch.equal(found[name], first[name]) for name in first)
