"""Sparsity terms by hand, and the gradient of the auxiliary term."""

from __future__ import annotations

import math

import pytest
import torch

from sae_lens.saes.sparsity_losses import (
    dead_feature_reconstruction_loss,
    quadratic_l0,
    sparsity_loss,
)

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


def test_dead_features_alone_learn_from_the_residual():
    torch.manual_seed(0)
    residual = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    W_dec = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    loss = dead_feature_reconstruction_loss(residual, hidden, W_dec, 2, True)
    rank = hidden * W_dec.norm(dim=-1)
    kept = rank >= rank.topk(2, dim=-1).values[:, -1:]
    acts = torch.relu(hidden) * kept
    want = (residual - acts @ W_dec).pow(2).sum(-1).mean()
    torch.testing.assert_close(loss, want)
    loss.backward()
    assert residual.grad is None
    got = hidden.grad.clone(), W_dec.grad.clone()
    hidden.grad = W_dec.grad = None
    (residual.detach() - (torch.relu(hidden) * kept) @ W_dec).pow(2).sum(-1).mean().backward()
    torch.testing.assert_close(got, (hidden.grad, W_dec.grad))
    none = dead_feature_reconstruction_loss(residual, hidden[:, :0], W_dec[:0], 2, True)
    assert none == 0
