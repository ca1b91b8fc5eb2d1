"""Adam that leaves entries without a gradient alone."""

from __future__ import annotations

import pytest
import torch

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
