"""Terms about dead features where the host does not know how many there are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.saes import TrainingSAE, TrainStepInput
from sae_lens.saes.dead_features import dead_features
from tests.helpers import D_IN, D_SAE, activations, make_training_sae, randomize
from tests.saes.test_sparse_training import DEAD_FEATURES, V6_CASES, one_pass_of_step

V5_CASES: list[tuple[str, dict[str, Any]]] = [("topk", {}), ("standard", {"use_ghost_grads": True})]


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are treated as if they were on another device."""
    for module in ("dead_features", "losses", "topk", "cross_layer_some_features"):
        monkeypatch.setattr(f"sae_lens.saes.{module}.may_look_at", lambda _: False)


def losses_and_gradients(
    sae: TrainingSAE, mode: str, dead: Tensor, most_dead: int | None
) -> dict[str, Tensor]:
    width = sum(getattr(sae, "activation_widths", (D_IN,)))
    step = TrainStepInput(activations(10, width), {"l1": 0.7}, dead, most_dead=most_dead)
    output, gradients = one_pass_of_step(sae, mode, step)
    return {**{name: loss.detach() for name, loss in output.losses.items()}, **gradients}


def compare(sae: TrainingSAE, mode: str, dead: Tensor, request: pytest.FixtureRequest) -> None:
    wanted = losses_and_gradients(sae, mode, dead, None)
    request.getfixturevalue("far_away")
    n_dead = int(dead.sum())
    for most_dead in (n_dead, n_dead + 3, D_SAE):
        got = losses_and_gradients(sae, mode, dead, min(most_dead, D_SAE))
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(
                got[name], value, atol=3e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("dead", ["none dead", "some dead", "most dead"])
@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize("config", V6_CASES, ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}")
def test_more_than_the_dead_ones_change_nothing_v6(
    config: Any, mode: str, dead: str, request: pytest.FixtureRequest
) -> None:
    sae = TrainingSAE(copy.deepcopy(config))
    randomize(sae)
    mask = DEAD_FEATURES[dead]
    assert mask is not None
    compare(sae, mode, mask, request)


@pytest.mark.parametrize("dead", ["none dead", "some dead", "most dead"])
@pytest.mark.parametrize("mode", ["dense", "sparse"])
@pytest.mark.parametrize(("architecture", "fields"), V5_CASES, ids=str)
def test_more_than_the_dead_ones_change_nothing_v5(
    architecture: str, fields: dict[str, Any], mode: str, dead: str, request: pytest.FixtureRequest
) -> None:
    mask = DEAD_FEATURES[dead]
    assert mask is not None
    compare(make_training_sae(architecture, **fields), mode, mask, request)


def test_dead_features_among_others(far_away: None) -> None:
    mask = torch.zeros(20, dtype=torch.bool)
    mask[[3, 17, 9]] = True
    found = dead_features(mask, most_dead=4)
    assert found is not None and found.are_dead is not None
    assert found.indices[found.are_dead].tolist() == [3, 9, 17]
    assert len(found.indices) == 4 and found.indices.tolist() == sorted(found.indices.tolist())
    assert len(dead_features(mask, most_dead=5).indices) == 8  # type: ignore[union-attr]
    assert dead_features(mask, most_dead=0) is None
    exact = dead_features(mask)  # without a bound there is nothing for it but to wait
    assert exact is not None and exact.indices.tolist() == [3, 9, 17] and exact.are_dead is None
