"""Adam in bfloat16: unbiased rounding, no stalled updates, the same numbers as Adam otherwise."""

from __future__ import annotations

import copy

import pytest
import torch

from sae_lens.config import SAETrainerConfig
from sae_lens.training.low_precision_adam import LowPrecisionAdam, round_stochastically
from sae_lens.training.optim import clip_and_step, gradient_norm
from sae_lens.training.sae_trainer import SAETrainer
from tests.helpers import activations, make_training_sae


def noise(n: int) -> torch.Tensor:
    return torch.randint(0, 65536, (n,), dtype=torch.int32)


@pytest.mark.parametrize("value", [1.001, -1.001, 3e-5, -7.77, 1e30, 0.0])
def test_rounding_is_to_a_neighbour_and_right_on_average(value: float) -> None:
    torch.manual_seed(0)
    n = 20_000
    out = torch.empty(n, dtype=torch.bfloat16)
    round_stochastically(torch.full((n,), value), noise(n), out=out)
    exact = torch.tensor(value, dtype=torch.float32).item()
    assert len(out.unique()) <= 2
    gap = abs(exact) * 2**-7
    assert (out.float() - exact).abs().max() <= gap
    assert abs(out.double().mean().item() - exact) <= 5 * gap / n**0.5


def test_rounding_keeps_what_is_not_finite() -> None:
    values = torch.tensor([torch.inf, -torch.inf, torch.nan])
    out = torch.empty(3, dtype=torch.bfloat16)
    round_stochastically(values, torch.full((3,), 65535, dtype=torch.int32), out=out)
    assert out[0] == torch.inf
    assert out[1] == -torch.inf
    assert out[2].isnan()


@pytest.mark.parametrize("transposed", [False, True])
def test_float32_parameters_move_as_with_adam(transposed: bool) -> None:
    start = torch.randn(6, 4).T if transposed else torch.randn(4, 6)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    one = LowPrecisionAdam([ours], lr=1e-2, betas=(0.9, 0.99))
    other = torch.optim.Adam([theirs], lr=1e-2, betas=(0.9, 0.99))
    for _ in range(5):
        gradient = torch.randn(4, 6)  # of another layout than the transposed parameter
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


def test_small_updates_are_not_lost() -> None:
    """At lr 1e-4 a weight of 1 cannot move by rounding to the nearest, but does on average here."""
    stochastic = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    nearest = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = LowPrecisionAdam([stochastic], lr=1e-4)
    plain = torch.optim.Adam([nearest], lr=1e-4)
    for _ in range(50):
        stochastic.grad, nearest.grad = torch.ones_like(stochastic), torch.ones_like(nearest)
        optimizer.step()
        plain.step()
    assert torch.equal(nearest, torch.ones_like(nearest))
    assert stochastic.float().mean().item() == pytest.approx(1 - 50e-4, abs=5e-4)
    state = optimizer.state[stochastic]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    assert state["exp_avg_sq"].float().mean().item() == pytest.approx(1 - 0.999**50, rel=0.02)


def test_it_goes_on_from_a_saved_state_bit_for_bit() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(6, 100).bfloat16()
    weight = torch.nn.Parameter(torch.randn(100).bfloat16())
    optimizer = LowPrecisionAdam([weight], lr=1e-2)
    for i, gradient in enumerate(gradients):
        if i == 3:
            copied = torch.nn.Parameter(weight.detach().clone())
            saved = copy.deepcopy(optimizer.state_dict())
        weight.grad = gradient.clone()
        optimizer.step()
    other = LowPrecisionAdam([copied], lr=1e-2)
    other.load_state_dict(saved)
    for gradient in gradients[3:]:
        copied.grad = gradient.clone()
        other.step()
    assert torch.equal(copied, weight)


def test_it_divides_and_skips_like_a_fused_optimizer() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = LowPrecisionAdam([weight], lr=1e-2, eps=1e3)  # so that the size matters
    weight.grad = torch.full((3,), 100.0, dtype=torch.bfloat16)
    clip_and_step(optimizer, [weight], gradient_norm([weight]), skip=torch.tensor(True))
    assert torch.equal(weight, torch.zeros_like(weight))
    clip_and_step(optimizer, [weight], gradient_norm([weight]), skip=torch.tensor(False))
    mean = optimizer.state[weight]["exp_avg"].float()
    torch.testing.assert_close(mean, torch.full((3,), 0.1 * 3**-0.5), rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_that_is_not_asked_makes_the_same_updates(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that it were another device; steps are skipped there without the host's knowing."""
    torch.manual_seed(0)
    gradients = torch.randn(8, 50).to(dtype)
    gradients[6] = torch.nan
    start = torch.randn(50).to(dtype)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    for weight, looks in zip(weights, (True, False), strict=True):
        module = "sae_lens.training.low_precision_adam"
        monkeypatch.setattr(f"{module}.may_look_at", lambda _, f=looks: f)
        optimizer = LowPrecisionAdam([weight], lr=1e-2)
        for step, gradient in enumerate(gradients):
            before = weight.detach().clone()
            weight.grad = gradient.clone()
            skip = torch.tensor(step in (0, 3, 6))
            clip_and_step(optimizer, [weight], gradient_norm([weight]), skip)
            assert bool(skip) == torch.equal(weight, before)
    # in bfloat16 the random numbers are others after a step that was skipped
    exact = (
        {"atol": 0.02, "rtol": 0.02} if dtype == torch.bfloat16 else {"atol": 1e-6, "rtol": 1e-5}
    )
    torch.testing.assert_close(*weights, **exact)
    state = optimizer.state[weights[1]]
    assert int(state["step"]) == 5 and state["calls"] == 8


def test_a_state_of_the_cpu_serves_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = LowPrecisionAdam([weight])
    for looks, calls in ((True, None), (False, 2), (False, 3)):
        module = "sae_lens.training.low_precision_adam"
        monkeypatch.setattr(f"{module}.may_look_at", lambda _, f=looks: f)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert optimizer.state[weight].get("calls") == calls


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        LowPrecisionAdam([torch.nn.Parameter(torch.zeros(1))], lr=-1.0)


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_a_bfloat16_sae_trains_with_it(mode: str) -> None:
    """To about the loss of float32, by the config's own means."""
    losses = {}
    x = activations(64)
    for dtype in ("float32", "bfloat16"):
        sae = make_training_sae("topk", dtype=dtype)
        before = sae.training_forward_pass(x, 0.0, None).loss.item()
        cfg = SAETrainerConfig(
            total_training_samples=64 * 150,
            train_batch_size_samples=64,
            lr=3e-3,
            sparse_kernels=mode,
            features={
                "optimizer": {"path": "sae_lens.training.low_precision_adam.LowPrecisionAdam"}
            },
        )
        SAETrainer(cfg, sae, iter([x] * 150)).fit()
        losses[dtype] = sae.training_forward_pass(x, 0.0, None).loss.item()
        assert losses[dtype] < 0.5 * before
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.15)
