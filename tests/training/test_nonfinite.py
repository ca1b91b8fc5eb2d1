from __future__ import annotations

import pytest
import torch

from sae_lens.training.nonfinite import NonFiniteLossError, NonFiniteWatch

FINE = torch.tensor(1.0)
NAN = torch.tensor(float("nan"))
INF = torch.tensor(float("inf"))


@pytest.mark.parametrize(("loss", "norm"), [(NAN, FINE), (INF, FINE), (FINE, NAN), (FINE, INF)])
def test_the_cpu_raises_at_once_and_names_the_step(loss: torch.Tensor, norm: torch.Tensor) -> None:
    watch = NonFiniteWatch(torch.device("cpu"))
    assert not watch.observe(FINE, FINE, torch.ones(2, 2), step=6)
    with pytest.raises(NonFiniteLossError, match="training step 7.*has diverged") as caught:
        watch.observe(loss, norm, torch.ones(2, 2), step=7)
    assert caught.value.step == 7


def test_bad_activations_are_told_from_divergence() -> None:
    watch = NonFiniteWatch(torch.device("cpu"))
    with pytest.raises(NonFiniteLossError, match="activations of that batch are not finite"):
        watch.observe(NAN, None, NAN.expand(2, 2), step=0)


def test_elsewhere_the_first_bad_step_is_remembered_on_the_device() -> None:
    watch = NonFiniteWatch(torch.device("cpu"))
    watch._looks_at_once = False  # as away from the CPU
    skips = [
        bool(watch.observe(loss, FINE, batch, step))
        for step, (loss, batch) in enumerate(
            [(FINE, FINE), (NAN, FINE), (FINE, NAN), (INF, NAN), (FINE, FINE)]
        )
    ]
    assert skips == [False, True, True, True, True]  # all later updates are skipped
    with pytest.raises(NonFiniteLossError, match="step 1.*has diverged"):
        watch.check()


def test_nothing_happens_while_all_is_well() -> None:
    watch = NonFiniteWatch(torch.device("cpu"))
    watch._looks_at_once = False
    watch.observe(FINE, None, FINE, 0)
    watch.check()


@pytest.mark.parametrize("looks_at_once", [True, False])
@pytest.mark.parametrize("skips", [True, False])
def test_a_loss_far_above_its_mean_is_a_bad_one(looks_at_once: bool, skips: bool) -> None:
    watch = NonFiniteWatch(torch.device("cpu"), skips, spike_factor=5.0)
    watch._looks_at_once = looks_at_once
    # too early to tell; then steps that fall slowly, and one below the factor
    losses = [1.0, 30.0, *[2.0 - step / 100 for step in range(98)], 4.0]
    assert not any(watch.observe(torch.tensor(x), FINE, FINE, i) for i, x in enumerate(losses))
    assert 1.0 < float(watch._mean) < 2.0
    again = NonFiniteWatch(torch.device("cpu"), skips, spike_factor=5.0)
    again._looks_at_once = looks_at_once
    again.load_state_dict(watch.state_dict())
    for one in (watch, again):
        if skips:
            assert one.observe(torch.tensor(20.0), FINE, FINE, 200)
            assert not one.observe(torch.tensor(1.0), FINE, FINE, 201)
            assert one.n_skipped == 1
            continue
        with pytest.raises(NonFiniteLossError, match="step 200 is more than 5.0 times its running"):
            one.observe(torch.tensor(20.0), FINE, FINE, 200)
            one.check()
    assert watch.state_dict() == again.state_dict()


def test_without_a_factor_no_loss_is_too_high() -> None:
    watch = NonFiniteWatch(torch.device("cpu"))
    assert not any(watch.observe(torch.tensor(10.0**i), FINE, FINE, i) for i in range(30))
