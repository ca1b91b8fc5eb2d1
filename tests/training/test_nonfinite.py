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
