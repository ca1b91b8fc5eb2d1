"""Adam that leaves entries without a gradient alone."""

from __future__ import annotations

import pytest
import torch

from sae_lens.training.optim import clip_and_step, gradient_norm, is_fused
from sae_lens.training.sparse_adam import SparseAdam


def test_with_gradients_everywhere_it_is_adam():
    weights = [torch.nn.Parameter(torch.arange(4.0)) for _ in range(2)]
    optimizers = [
        SparseAdam([weights[0]], lr=0.1, betas=(0.8, 0.9)),
        torch.optim.Adam([weights[1]], lr=0.1, betas=(0.8, 0.9)),
    ]
    for step in range(5):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.tensor([1.0, -2.0, 0.5, 3.0]) * (step + 1)
            optimizer.step()
    torch.testing.assert_close(*weights)


def test_entries_without_a_gradient_stay_and_their_moments_decay():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = SparseAdam([weight], lr=0.1, betas=(0.5, 0.5))
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    assert weight[0] == before[0]
    assert weight[1] < before[1]
    state = optimizer.state[weight]
    assert state["exp_avg"].tolist() == [0.25, 0.75]
    assert state["exp_avg_sq"].tolist() == [0.25, 0.75]


def test_a_parameter_without_any_gradient_is_skipped():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = SparseAdam([weight], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    mean = optimizer.state[weight]["exp_avg"].clone()
    weight.grad = torch.zeros(2)
    optimizer.step()
    assert optimizer.state[weight]["step"] == 1
    assert torch.equal(optimizer.state[weight]["exp_avg"], mean)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="betas must lie in"):
        SparseAdam([torch.nn.Parameter(torch.ones(1))], betas=(0.9, 1.0))


def test_it_divides_and_skips_like_a_fused_optimizer():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = SparseAdam([weight], lr=0.1, betas=(0.5, 0.5))
    assert is_fused(optimizer)
    weight.grad = torch.tensor([3.0, 4.0])
    clip_and_step(optimizer, [weight], gradient_norm([weight]), skip=torch.tensor(True))
    assert weight.tolist() == [1.0, 1.0]
    clip_and_step(optimizer, [weight], gradient_norm([weight]), skip=torch.tensor(False))
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], torch.tensor([0.3, 0.4]))


def test_a_device_that_is_not_asked_makes_the_same_updates(monkeypatch: pytest.MonkeyPatch):
    """Told that it were another device; some steps are skipped there, or have no gradient."""
    generator = torch.Generator().manual_seed(0)
    gradients = [
        torch.randn(3, 8, generator=generator) * (torch.rand(3, 8, generator=generator) < 0.5)
        for _ in range(8)
    ]
    gradients[0] = gradients[4] = torch.zeros(3, 8)
    gradients[6] = torch.full((3, 8), torch.nan)
    weights = [torch.nn.Parameter(torch.ones(3, 8)) for _ in range(2)]
    for weight, looks in zip(weights, (True, False), strict=True):
        monkeypatch.setattr("sae_lens.training.sparse_adam.may_look_at", lambda _, f=looks: f)
        optimizer = SparseAdam([weight], lr=0.1, betas=(0.8, 0.99))
        for step, gradient in enumerate(gradients):
            weight.grad = gradient.clone()
            skip = torch.tensor(step in (2, 6))
            clip_and_step(optimizer, [weight], gradient_norm([weight]), skip)
    torch.testing.assert_close(*weights)
    assert int(optimizer.state[weights[1]]["step"]) == 4
