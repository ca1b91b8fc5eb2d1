"""Steering to a target L0: the law on simulated trainings, and runs of the trainer."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.saes import (
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
)
from sae_lens.training.features import TargetL0
from sae_lens.training.l0_controller import L0Controller
from sae_lens.training.target_l0 import L0Steering
from tests.helpers import activations
from tests.training.runs_on_batches import N, make_sae, recorded, trainer

# (scale, L0 before) -> (L0, error of the reconstruction)
Plant = Callable[[float, float], tuple[float, float]]


def drive(steering: L0Steering, plant: Plant, n: int, l0: float = 512.0) -> list[float]:
    """Scales of a simulated training."""
    scales = []
    for _ in range(n):
        l0, error = plant(steering.scale, l0)
        steering.take(l0, error)
        scales.append(steering.scale)
    return scales


def of_length(n: int, target: float = 32.0, **settings: Any) -> L0Steering:
    cfg = TargetL0(target, **settings)
    return L0Steering(cfg, n, int(cfg.reach_at * n))


def answering(coefficient: float, noise: float = 0.0, inertia: float = 60.0) -> Plant:
    """L0 goes to `32 / (coefficient x scale)`, at most 512, and cannot halve at once."""
    source = random.Random(0)
    real = [512.0]

    def step(scale: float, _: float) -> tuple[float, float]:
        goal = min(512.0, 32.0 / (coefficient * scale))
        real[0] *= (goal / real[0]) ** (1 / inertia)
        return real[0] * math.exp(source.gauss(0, noise)), 100.0 / real[0]

    return step


@pytest.mark.parametrize("coefficient", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("n", [500, 5000])
def test_the_target_is_reached_from_any_first_coefficient(coefficient: float, n: int):
    steering, plant = of_length(n), answering(coefficient, noise=0.05)
    lowest = []
    drive(steering, lambda *now: (lowest.append(plant(*now)), lowest[-1])[1], n)
    assert steering.scale * coefficient == pytest.approx(1.0, rel=0.15)
    assert steering.mean_l0 == pytest.approx(32.0, rel=0.15)
    assert min(l0 for l0, _ in lowest) > 0.7 * 32.0


def test_an_saes_own_pace_is_enough():
    """What falls in time by itself is left alone."""
    steering = of_length(500, start=1.0)
    pace = (32 / 512) ** (1 / 250)
    scales = drive(steering, lambda scale, l0: (l0 * pace, 1.0), 240)
    assert max(scales) < 3
    assert min(scales) >= 1


def test_an_sae_that_collapses_is_not_pushed_on(caplog: Any):
    """L0 hardly moves, and the more the coefficient, the less is reconstructed."""
    steering = of_length(500)
    scales = drive(steering, lambda scale, l0: (max(180.0, l0 * 0.99), 10 + 40 * scale), 500)
    assert max(scales) < 1.0
    assert steering.n_held > 100
    assert [r.getMessage() for r in caplog.records] == [
        "L0 is at 180.0, its target is 32.0. The sparsity coefficient is not raised above "
        f"{max(scales):.3g} times its configured value: L0 does not answer, and the "
        "reconstruction gets worse."
    ]


def test_what_the_learning_rate_limits_is_waited_for():
    """L0 falls at a pace of its own, too slow to be in time."""
    steering = of_length(1000)
    scales = drive(steering, lambda scale, l0: (l0 * 0.998, 1.0), 1000)
    assert max(scales) < 1.0


def test_a_rise_that_is_answered_goes_on():
    """The reconstruction gets worse, as it must, and L0 answers."""
    steering = of_length(1000)
    drive(steering, lambda scale, l0: (min(512.0, 3200 / scale), 100 / l0), 1000)
    assert steering.scale == pytest.approx(100, rel=0.15)
    assert steering.n_held == 0


def test_a_plateau_is_crossed():
    """L0 stays at the number of true features until the penalty is many times larger."""
    steering = of_length(1000, target=3.0, start=1.0)

    def plant(scale: float, l0: float) -> tuple[float, float]:
        goal = min(6.0, 120 / scale)
        error = 50.0 if l0 > 100 else min(20.0, scale)
        return l0 * (goal / l0) ** 0.05, error

    drive(steering, plant, 1000)
    assert steering.mean_l0 is not None
    assert steering.mean_l0 < 4.5
    assert steering.n_held == 0


def test_the_coefficient_stays_within_its_limits(caplog: Any):
    steering = of_length(100, start=0.2, max_factor=5.0, max_rise=20.0, max_change=1.0)
    scales = [steering.scale, *drive(steering, lambda scale, l0: (512.0, 1.0), 100)]
    rises = [math.log(after / before) for before, after in pairwise(scales)]
    assert 0.15 < max(rises) <= 0.2
    assert scales[-1] == pytest.approx(5.0)
    assert caplog.text.count("max_factor does not allow more") == 1
    fall = drive(steering, lambda scale, l0: (1e-9, 1.0), 100)
    assert -0.6 <= min(math.log(b / a) for a, b in pairwise(fall)) < -0.3
    assert fall[-1] == pytest.approx(0.2)
    short = of_length(20, max_change=0.05)
    drive(short, lambda scale, l0: (512.0, 1.0), 20)
    assert 0.1 * math.exp(0.9) < short.scale <= 0.1 * math.exp(1.0)


def test_nothing_is_steered_while_the_coefficient_warms_up():
    sae = make_sae(l1_coefficient=0.1, l1_warm_up_steps=6)
    run = trainer(sae, {"target_l0": {"target": 5.0}}, n_steps=12)
    scales = recorded(run, lambda output: run.features.coefficient_scale)
    assert scales[:6] == [0.1] * 6
    assert scales[6] != 0.1


def test_batches_that_add_up_are_one_update():
    features = {"target_l0": {"target": 5.0, "reach_at": 6}, "gradient_accumulation_steps": 3}
    run = trainer(make_sae(l1_coefficient=0.1, l1_warm_up_steps=4), features, n_steps=12)
    steering = run.features.controller.steering
    assert steering is not None
    assert (steering.n_updates, steering.due, steering.first) == (4, 2, 2)


def planted(batch: int, n_steps: int) -> list[Tensor]:
    """Sums of 4 of 24 directions, on average."""
    directions = torch.nn.functional.normalize(activations(24, seed=0), dim=-1)
    source = torch.Generator().manual_seed(1)
    fires = torch.rand(n_steps, batch, 24, generator=source) < 4 / 24
    return list((fires * (1 + torch.rand(fires.shape, generator=source))) @ directions)


CASES: list[tuple[Any, dict[str, Any], float]] = [
    (StandardTrainingSAEConfig, {}, 0.5),
    (GatedTrainingSAEConfig, {"detach_auxiliary_decoder": True}, 0.6),
    (GatedTrainingSAEConfig, {}, 0.6),
    (JumpReLUTrainingSAEConfig, {"jumprelu_bandwidth": 0.3, "jumprelu_init_threshold": 0.1}, 0.6),
]


@pytest.mark.parametrize("coefficient", [0.05, 5.0])
@pytest.mark.parametrize(("cls", "fields", "least"), CASES)
def test_saes_reach_it_and_reconstruct(
    cls: Any, fields: dict[str, Any], least: float, coefficient: float
):
    name = "l0_coefficient" if cls is JumpReLUTrainingSAEConfig else "l1_coefficient"
    sae = make_sae(cls, **{name: coefficient}, **fields)
    n_steps, batch = 400, 64
    data = planted(batch, n_steps)
    run = trainer(sae, {"target_l0": {"target": 5.0}}, n_steps, batch, data)
    shares = [x.sub(x.mean(0)).pow(2).sum(-1).mean() for x in data]
    seen = recorded(
        run,
        lambda output: (
            float((output.feature_acts.to_dense() > 0).sum(-1).float().mean()),
            output.losses["mse_loss"].item(),
        ),
    )
    l0, error = (sum(values) / 80 for values in zip(*seen[-80:], strict=True))
    assert l0 == pytest.approx(5.0, rel=0.25)
    assert 1 - error / float(sum(shares[-80:]) / 80) > least
    assert run.features.metrics() == {"details/coefficient_scale": run.features.coefficient_scale}


def test_away_from_the_cpu_the_controller_looks_a_step_back(monkeypatch: pytest.MonkeyPatch):
    def scales() -> list[float]:
        run = trainer(make_sae(), {"target_l0": {"target": 5.0}}, n_steps=6)
        return recorded(run, lambda output: run.features.coefficient_scale)

    at_once = scales()
    monkeypatch.setattr("sae_lens.training.l0_controller.may_look_at", lambda tensor: False)
    # the first step that can be looked at is the first one, in the second
    later = scales()
    assert later[0] == 0.1
    assert later[1] == at_once[0]
    assert later[2] == pytest.approx(at_once[1], rel=1e-2)


def test_a_controller_that_looks_back_goes_on_from_its_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_lens.training.l0_controller.may_look_at", lambda tensor: False)
    sae, settings = make_sae(), TargetL0(5.0)
    outputs = [sae.training_forward_pass(activations(N, seed=i)) for i in range(4)]
    whole, first = L0Controller(settings, sae, 4), L0Controller(settings, sae, 4)
    for output in outputs:
        whole.observe(output)
    for output in outputs[:2]:
        first.observe(output)
    rest = L0Controller(settings, sae, 4)
    rest.load_state_dict(copy.deepcopy(first.state_dict()))
    for output in outputs[2:]:
        rest.observe(output)
    assert rest.state_dict() == whole.state_dict()
    assert whole.state_dict()["l0_underway"] is not None


def test_a_target_out_of_reach_is_reported(caplog: Any):
    run = trainer(make_sae(), {"target_l0": {"target": 1.0}}, n_steps=3)
    run.fit()
    assert "target L0 of 1.0 was not reached: it ended at" in caplog.text
    assert "having been between" in caplog.text


@pytest.mark.parametrize(("target", "is_reported"), [(2.0, True), (24.0, False)])
def test_the_target_in_an_saes_own_loss_is_reported_too(
    target: float, is_reported: bool, caplog: Any
):
    fields = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": target}
    sae = make_sae(JumpReLUTrainingSAEConfig, jumprelu_init_threshold=1e-4, **fields)
    trainer(sae, None, n_steps=2, lr=1e-6).fit()  # half of all features are above 0 at the start
    said = f"target L0 of {target} was not reached: it was 2" in caplog.text
    assert said == is_reported
