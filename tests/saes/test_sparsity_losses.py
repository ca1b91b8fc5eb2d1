"""Sparsity terms by hand, and the gradient of the auxiliary term."""

from __future__ import annotations

import math

import pytest
import torch

from sae_lens.kernels.active_set import ActiveSet
from sae_lens.saes import (
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TrainingSAE,
    TrainStepInput,
)
from sae_lens.saes.sparsity_losses import SparsityTerm, l0_loss
from tests.helpers import D_IN, D_SAE, activations, assert_close, randomize

FEATURES = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0]])
KINDS = ("power", "tanh", "tanh-quad")


def test_terms_by_hand():
    assert SparsityTerm(p=1).of(FEATURES).item() == pytest.approx(4.0)
    assert SparsityTerm(p=2).of(FEATURES, 0.5).item() == pytest.approx(1.5)
    assert SparsityTerm(p=0.5).of(FEATURES[1:]).item() == pytest.approx(1.0)
    tanh = [[math.tanh(0.5 * v) for v in row] for row in FEATURES.tolist()]
    want = sum(map(sum, tanh)) / 2
    assert SparsityTerm("tanh", stretch=0.5).of(FEATURES).item() == pytest.approx(want)
    q = [(a + b) / 2 for a, b in zip(*tanh, strict=True)]
    want = sum(v * (1 + v / 0.1) for v in q)
    got = SparsityTerm("tanh-quad", stretch=0.5, frequency_scale=0.1).of(FEATURES)
    assert got.item() == pytest.approx(want)
    assert l0_loss(torch.tensor([3.0, 5.0]), 3.0, 4.0).item() == pytest.approx(1.5)
    with pytest.raises(ValueError, match="allowed are power, tanh, tanh-quad"):
        SparsityTerm("l0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be above 0"):
        SparsityTerm(p=0)


@pytest.mark.parametrize(
    "term",
    [SparsityTerm(kind, p, 0.7, 0.2) for kind, p in [*((k, 1.0) for k in KINDS), ("power", 1.7)]],
)
def test_active_entries_give_the_same_value_and_gradient(term: SparsityTerm):
    dense = torch.relu(torch.randn(7, 9, dtype=torch.float64, generator=_seeded()))
    rows, cols = dense.nonzero(as_tuple=True)
    entries = dense[rows, cols].requires_grad_()
    active = ActiveSet(rows, cols, dense.shape)
    dense.requires_grad_()
    want, got = term.of(dense, 0.3), term.of_entries(entries, active, 0.3)
    assert_close(got, want)
    want.backward()
    got.backward()
    assert_close(entries.grad, dense.grad[rows, cols])


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


CONFIGS = {
    "standard": (StandardTrainingSAEConfig, "sparsity_loss", "tanh_stretch"),
    "gated": (GatedTrainingSAEConfig, "sparsity_loss", "tanh_stretch"),
    "jumprelu": (JumpReLUTrainingSAEConfig, "jumprelu_sparsity_loss_mode", "jumprelu_tanh_scale"),
}


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_sae_with_a_coefficient_trains_with_any_of_them(
    architecture: str, kind: str, kernels: str
):
    config, loss_field, stretch_field = CONFIGS[architecture]
    cfg = config(
        d_in=D_IN,
        d_sae=D_SAE,
        dtype="float64",
        **{loss_field: kind, stretch_field: 2.0, "frequency_scale": 0.3, "lp_norm": 1.5},
    )
    sae = TrainingSAE(cfg)
    randomize(sae)
    sae.sparse_kernels = kernels
    x = activations(dtype=torch.float64)
    output = sae.training_forward_pass(TrainStepInput(x, {"l1": 0.5}))
    assert bool(output.metrics.get("sparse_kernels", 0.0)) == (kernels == "sparse")
    strengths = output.feature_acts.to_dense() if kernels == "sparse" else output.feature_acts
    if architecture == "gated":
        strengths = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_gate)
    term = SparsityTerm(kind, 1.5, 2.0, 0.3)  # type: ignore[arg-type]
    want = 0.5 * term.of(strengths * sae.W_dec.norm(dim=-1))
    name = "l0_loss" if architecture == "jumprelu" else "l1_loss"
    assert_close(output.losses[name], want)
    output.loss.backward()
    assert sae.W_enc.grad.any()
    with pytest.raises(ValueError, match="allowed are .*power"):
        config(d_in=D_IN, d_sae=D_SAE, **{loss_field: "l0"})


@pytest.mark.parametrize("detaches", [False, True])
@pytest.mark.parametrize("name", ["auxiliary_reconstruction_loss", "l1_loss"])
def test_the_gates_terms_can_leave_the_decoder_alone(name: str, detaches: bool):
    cfg = GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, detach_auxiliary_decoder=detaches)
    torch.manual_seed(0)
    sae = GatedTrainingSAE(cfg)
    randomize(sae)
    output = sae.training_forward_pass(TrainStepInput(activations(), {"l1": 0.1}))
    output.losses[name].backward()
    assert (sae.W_dec.grad is None or not sae.W_dec.grad.any()) == detaches
    assert sae.W_enc.grad.any()
