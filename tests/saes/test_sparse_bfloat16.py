"""Sparse steps on bfloat16 weights: the dense ones up to rounding."""

from __future__ import annotations

import copy

import pytest
import torch

from sae_lens.kernels.dispatch import has_sparse_kernels
from tests.helpers import activations, make_training_sae

pytestmark = pytest.mark.skipif(
    not has_sparse_kernels(torch.device("cpu"), torch.bfloat16),
    reason="this torch has no sparse products for the CPU (built without MKL)",
)


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk"])
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
