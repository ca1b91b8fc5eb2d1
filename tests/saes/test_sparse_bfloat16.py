"""Sparse steps on bfloat16 weights: the dense ones up to rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.dispatch import has_sparse_kernels
from sae_lens.saes import TrainingSAE, TrainStepInput
from sae_lens.saes.losses import lp_sparsity
from tests.helpers import D_IN, D_SAE, activations, make_training_sae
from tests.saes.test_sparse_training import V6_CASES

pytestmark = pytest.mark.skipif(
    not has_sparse_kernels(torch.device("cpu"), torch.bfloat16),
    reason="this torch has no sparse products for the CPU (built without MKL)",
)


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_loss_and_gradients_are_those_of_float32_up_to_rounding(architecture: str) -> None:
    sae = make_training_sae(architecture, dtype="bfloat16")
    # inputs and weights that bfloat16 holds exactly, so that only the arithmetic differs
    exact = copy.deepcopy(sae).float()
    exact.cfg.dtype = "float32"
    x = activations(64).bfloat16().float()
    sae.sparse_kernels, exact.sparse_kernels = "sparse", "dense"
    outputs = [one.training_forward_pass(x, 1e-2, None) for one in (sae, exact)]
    assert outputs[0].metrics["sparse_kernels"] == 1.0
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(outputs[0].loss.float(), outputs[1].loss, rtol=0.02, atol=0.02)
    for (name, low), high in zip(sae.named_parameters(), exact.parameters(), strict=True):
        if high.grad is None:
            continue
        assert low.grad is not None and low.grad.dtype == torch.bfloat16, name
        cosine = torch.cosine_similarity(low.grad.float().flatten(), high.grad.flatten(), dim=0)
        # which of two nearly equal pre-activations is chosen may differ, and little else
        assert cosine > 0.97, name


@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("config", V6_CASES, ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}")
def test_losses_are_summed_in_float32(config: Any, mode: str) -> None:
    config = copy.deepcopy(config)
    config.dtype = "bfloat16"
    sae = TrainingSAE(config)
    sae.sparse_kernels = mode  # type: ignore[assignment]
    x = activations(64, sum(getattr(sae, "activation_widths", (D_IN,)))).bfloat16()
    dead = torch.arange(D_SAE) % 5 == 0
    output = sae.training_forward_pass(TrainStepInput(x, {"l1": 0.1}, dead))
    assert output.loss.dtype == torch.float32
    assert {name: loss.dtype for name, loss in output.losses.items()} == dict.fromkeys(
        output.losses, torch.float32
    )


def test_sums_over_many_entries_do_not_stall() -> None:
    """In bfloat16 a sum of ones would end at 256."""
    n = 5000
    ones = torch.ones(n, dtype=torch.bfloat16)
    row, place = torch.zeros(n, dtype=torch.long), torch.arange(n)
    assert ActiveSet(row, place, torch.Size((1, n))).sum_rows(ones).tolist() == [n]
    assert ActiveSet(place, row, torch.Size((n, 1))).sum_cols(ones).tolist() == [n]
    assert lp_sparsity(ones.view(1, n), 1.0).tolist() == [n]
