"""Schedules by their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from sae_lens.training.loss_schedules import (
    LearningRateFactor,
    check_steps,
    checkpoint_steps,
    k_at_step,
    resolve_steps,
    steps_of_setting,
    value_between,
    warm_up_weight,
)


def test_an_int_is_steps_and_a_float_a_share():
    assert resolve_steps(1, 200) == 1
    assert resolve_steps(1.0, 200) == 200
    assert resolve_steps(0.999, 10) == 9
    for bad in (1.5, -0.1, -1):
        with pytest.raises(ValueError, match="x is"):
            check_steps("x", bad)
    check_steps("x", 500)


def test_settings_that_began_as_numbers_of_steps_may_be_shares_too():
    for given, want in ((7, 7), (0.25, 50), (1.0, 200), (0.0, 0), (500.0, 500.0)):
        assert steps_of_setting("x", given, 200) == want
    for bad in (1.5, -0.1, -1):
        with pytest.raises(ValueError, match="x is"):
            steps_of_setting("x", bad, 200)


def test_warm_up_starts_at_zero_and_none_is_none():
    assert [warm_up_weight(s, 4) for s in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert warm_up_weight(0, 0) == 1


def test_values_between():
    assert [value_between(s, 8, 4, 2, first_step=1) for s in range(5)] == [8, 8, 6, 4, 4]
    a, t = 3.0, 0.25
    want = 8 - 4 * (1 - math.exp(-a * t)) / (1 - math.exp(-a))
    assert value_between(1, 8, 4, 4, kind="exponential", factor=a) == pytest.approx(want)
    assert value_between(0, 8, 4, 0) == 4


def test_k_is_rounded_up_and_never_below_its_end():
    got = [k_at_step(s, 4, 10.7, 4, cold_steps=2) for s in range(9)]
    assert got == [10, 10, 11, 10, 8, 6, 4, 4, 4]
    fast = [k_at_step(s, 4, 100, 10, kind="exponential") for s in range(11)]
    slow = [k_at_step(s, 4, 100, 10) for s in range(11)]
    assert fast[0] == slow[0] == 100
    assert fast[10] == slow[10] == 4
    assert all(f < s for f, s in zip(fast[1:-1], slow[1:-1], strict=True))


N, W, C, R = 20, 4, 5, 0.1
FORMULAS = {
    "constant": lambda s: 1.0,
    "constantwithwarmup": lambda s: min(1.0, (s + 1) / W, R + (1 - R) * max(N - s, 1) / C),
    "linearwarmupdecay": lambda s: (s + 1) / W if s < W else (N - s) / (N - W),
    "cosineannealing": lambda s: R + (1 - R) * (1 + math.cos(math.pi * s / N)) / 2,
    "cosineannealingwarmup": lambda s: (
        (s + 1) / W if s < W else R + (1 - R) * (1 + math.cos(math.pi * (s - W) / (N - W))) / 2
    ),
    "exponentialwarmup": lambda s: (s + 1) / W if s < W else R ** ((s - W) / (N - W)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_learning_rates(name: str):
    factor = LearningRateFactor(name, N, W, C, R)
    assert [factor(s) for s in range(N)] == pytest.approx([FORMULAS[name](s) for s in range(N)])
    without = LearningRateFactor(name, N, 0, 0, R)
    assert without(0) == pytest.approx(1.0)
    assert all(math.isfinite(without(s)) for s in range(N + 1))


def test_a_scheduler_saves_the_factor_as_plain_data():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    factor = LearningRateFactor("constantwithwarmup", N, W, C, R)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 / W)
    optimizer.step()
    scheduler.step()
    state = scheduler.state_dict()
    assert state["lr_lambdas"] == [vars(factor)]
    scheduler.load_state_dict(state)
    assert scheduler.get_last_lr() == pytest.approx([2.0 * 2 / W])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "step"}, "Unsupported scheduler: step"),
        ({"name": "constant", "end_ratio": 1.5}, r"lr_end_ratio is 1.5"),
        ({"name": "exponentialwarmup", "end_ratio": 0.0}, "one above 0"),
    ],
)
def test_learning_rates_that_make_no_sense(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LearningRateFactor(total_steps=10, **fields)


def test_checkpoints():
    assert checkpoint_steps(100, 4, "linear") == [25, 50, 75]
    assert checkpoint_steps(10, 3, "linear") == [3, 6, 9]
    assert checkpoint_steps(1024, 5, "log") == [4, 16, 64, 256]
    assert checkpoint_steps(3, 10, "log") == [2, 3] or checkpoint_steps(3, 10, "log")[-1] < 4
    assert checkpoint_steps(100, 0, "log") == checkpoint_steps(1, 5, "linear") == []
