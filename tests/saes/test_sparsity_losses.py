"""Sparsity terms by hand, and the gradient of the auxiliary term."""

from __future__ import annotations

import math

import pytest
import torch

from sae_lens.saes import (
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TrainStepInput,
)
from sae_lens.saes.sparsity_losses import (
    quadratic_l0,
    sparsity_loss,
)
from tests.helpers import D_IN, D_SAE, activations, assert_close, randomize

FEATURES = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0]])


def test_terms_by_hand():
    assert sparsity_loss("power", FEATURES, p=1).item() == pytest.approx(4.0)
    assert sparsity_loss("power", FEATURES, p=2).item() == pytest.approx(3.0)
    tanh = [[math.tanh(0.5 * v) for v in row] for row in FEATURES.tolist()]
    want = sum(map(sum, tanh)) / 2
    assert sparsity_loss("tanh", FEATURES, stretch=0.5).item() == pytest.approx(want)
    q = [(a + b) / 2 for a, b in zip(*tanh, strict=True)]
    want = sum(v * (1 + v / 0.1) for v in q)
    got = sparsity_loss("tanh-quad", FEATURES, stretch=0.5, frequency_scale=0.1)
    assert got.item() == pytest.approx(want)
    assert quadratic_l0(torch.tensor([3.0, 5.0]), 4.0).item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="allowed are power, tanh and tanh-quad"):
        sparsity_loss("l0", FEATURES)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["tanh", "tanh-quad"])
def test_a_standard_sae_trains_with_any_of_them(kind):
    cfg = StandardTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, sparsity_loss=kind, tanh_stretch=2.0, frequency_scale=0.3
    )
    sae = StandardTrainingSAE(cfg)
    randomize(sae)
    sae.sparse_kernels = "sparse"
    output = sae.training_forward_pass(TrainStepInput(activations(), {"l1": 0.5}))
    weighted = output.feature_acts * sae.W_dec.norm(dim=-1)
    want = 0.5 * sparsity_loss(kind, weighted, stretch=2.0, frequency_scale=0.3)
    assert_close(output.losses["l1_loss"], want)
    with pytest.raises(ValueError, match="allowed are power, tanh, tanh-quad"):
        StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, sparsity_loss="l0")


@pytest.mark.parametrize("detaches", [False, True])
def test_the_gates_reconstruction_can_leave_the_decoder_alone(detaches: bool):
    cfg = GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, detach_auxiliary_decoder=detaches)
    torch.manual_seed(0)
    sae = GatedTrainingSAE(cfg)
    randomize(sae)
    output = sae.training_forward_pass(TrainStepInput(activations(), {"l1": 0.1}))
    output.losses["auxiliary_reconstruction_loss"].backward()
    assert (sae.W_dec.grad is None or not sae.W_dec.grad.any()) == detaches
    assert sae.W_enc.grad.any()
