from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_lens.training.optim import (
    L1Scheduler,
    clip_and_step,
    get_lr_scheduler,
    gradient_norm,
    is_fused,
    make_optimizer,
)
from tests.helpers import golden_cases, load_golden

SHARED = {"training_steps": 8, "lr": 0.1, "num_cycles": 1}


def learning_rates(n_steps: int, name: str, **arguments: float) -> list[float]:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=arguments["lr"])
    scheduler = get_lr_scheduler(name, optimizer=optimizer, **arguments)  # type: ignore[arg-type]
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("case", golden_cases("lr"), ids=lambda path: path.stem)
def test_learning_rates_equal_the_reference(case: Path) -> None:
    description, tensors = load_golden(case)
    want = tensors["out/lr"]
    got = learning_rates(len(want), description["name"], **description["args"])
    torch.testing.assert_close(torch.tensor(got), want.float(), atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("case", golden_cases("l1"), ids=lambda path: path.stem)
def test_coefficients_equal_the_reference(case: Path) -> None:
    description, tensors = load_golden(case)
    scheduler = L1Scheduler(**description["args"])
    got = []
    for _ in range(len(tensors["out/l1"])):
        got.append(scheduler.current_l1_coefficient)
        scheduler.step()
    torch.testing.assert_close(torch.tensor(got), tensors["out/l1"].float(), atol=1e-9, rtol=1e-6)


def test_schedules_computed_by_hand() -> None:
    constant = learning_rates(9, "constant", warm_up_steps=2, decay_steps=4, lr_end=0.0, **SHARED)
    assert constant == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025, 0])
    cosine = learning_rates(
        9, "CosineAnnealing", warm_up_steps=2, decay_steps=2, lr_end=0.01, **SHARED
    )
    want = [0.05, 0.1, 0.1, 0.08682, 0.055, 0.02318, 0.01, 0.005, 0]
    assert cosine == pytest.approx(want, abs=1e-5)


def test_a_warm_up_of_one_step_starts_at_the_full_rate() -> None:
    rates = learning_rates(3, "constant", warm_up_steps=1, decay_steps=0, lr_end=0.0, **SHARED)
    assert rates == pytest.approx([0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "linear",
            {"warm_up_steps": 0, "decay_steps": 0, "lr_end": 0.0},
            "Unsupported scheduler: linear",
        ),
        (
            "cosineannealing",
            {"warm_up_steps": 0, "decay_steps": 2, "lr_end": 0.0},
            "Cannot have decay_steps with lr_end=0.0",
        ),
        ("constant", {"warm_up_steps": 5, "decay_steps": 4, "lr_end": 0.0}, "do not fit into 8"),
    ],
)  # fmt: skip
def test_impossible_schedules_are_refused(
    name: str, arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        learning_rates(1, name, **arguments, **SHARED)


def test_l1_scheduler_warms_up_and_remembers() -> None:
    scheduler = L1Scheduler(l1_warm_up_steps=4, total_steps=10, final_l1_coefficient=2.0)
    seen = []
    for _ in range(6):
        seen.append(scheduler.current_l1_coefficient)
        scheduler.step()
    assert seen == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    other = L1Scheduler(0, 0, 0.0)
    other.load_state_dict(scheduler.state_dict())
    assert vars(other) == vars(scheduler)
    assert len(scheduler.state_dict()) == 5


def test_l1_scheduler_refuses_what_is_no_number() -> None:
    with pytest.raises(TypeError, match="'much'"):
        L1Scheduler(0, 10, "much")  # type: ignore[arg-type]


def test_an_integer_beta_is_made_a_float() -> None:
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(2))], 1e-3, 0, 0.999)
    betas = optimizer.param_groups[0]["betas"]
    assert betas == (0.0, 0.999)
    assert all(isinstance(beta, float) for beta in betas)


@pytest.mark.parametrize("size", [0.01, 30.0])
def test_the_fused_step_equals_clipping_and_plain_adam(size: float) -> None:
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(4)]
    gradients = [[torch.randn(5, 3) * size, torch.randn(4) * size] for _ in range(4)]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    plain = [torch.nn.Parameter(t.clone()) for t in start]
    fused = make_optimizer(ours, 1e-2, 0.9, 0.99)
    assert is_fused(fused)
    reference = torch.optim.Adam(plain, lr=1e-2, betas=(0.9, 0.99))
    for step in gradients:
        for a, b, gradient in zip(ours, plain, step, strict=True):
            a.grad, b.grad = gradient.clone(), gradient.clone()
        clip_and_step(fused, ours, gradient_norm(ours))
        torch.nn.utils.clip_grad_norm_(plain, 1.0)
        reference.step()
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_a_step_can_be_skipped() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([parameter], 1e-2, 0.9, 0.99)
    parameter.grad = torch.full((3,), torch.nan)
    clip_and_step(optimizer, [parameter], gradient_norm([parameter]), skip=torch.tensor(True))
    assert parameter.tolist() == [1.0, 1.0, 1.0]
