"""The same config gives the same weights, another seed others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.helpers import ARCHITECTURES, tiny_model
from tests.runs import (
    BATCH,
    LATER_FORM,
    assert_same_weights,
    make_runner,
    run_config,
    token_rows,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")

SHORT: dict[str, Any] = {"training_tokens": BATCH * 12, "lr_decay_steps": 0}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, LATER_FORM])
def test_the_same_config_gives_the_same_weights(
    architecture: str, tmp_path: Path, model: Any
) -> None:
    """With torch's deterministic algorithms, so that one without such a form would be an error."""
    weights = []
    for n in (0, 1):
        # what the process did before must not matter
        torch.rand(n)
        np.random.rand(n)
        random.random()
        weights.append(train(run_config(tmp_path / str(n), architecture, **SHORT), model))
    assert_same_weights(*weights)
    other = train(run_config(tmp_path / "other", architecture, seed=43, **SHORT), model)
    assert not torch.equal(other["W_enc"], weights[0]["W_enc"])


@pytest.mark.usefixtures("two_threads")
def test_two_threads_repeat_themselves(tmp_path: Path, model: Any) -> None:
    weights = [train(run_config(tmp_path / n, "topk", **SHORT), model) for n in "ab"]
    assert_same_weights(*weights)


def test_a_thread_that_makes_batches_ahead_changes_nothing(tmp_path: Path, model: Any) -> None:
    weights = [
        train(run_config(tmp_path / str(n), prefetch_batches=n, **SHORT), model) for n in (0, 2)
    ]
    assert_same_weights(*weights)


def test_the_order_of_the_data_follows_from_seed_and_epoch(tmp_path: Path, model: Any) -> None:
    """Not from what else is random: neither the architecture nor the number of evaluations."""

    def batches(seed: int, architecture: str = "standard", **fields: Any) -> torch.Tensor:
        cfg = run_config(tmp_path, architecture, seed=seed, **fields)
        rows = Dataset.from_dict({"tokens": token_rows()})
        store = make_runner(cfg, model, rows).activations_store
        return torch.stack([store.next_batch() for _ in range(40)])  # two epochs

    first = batches(1)
    assert torch.equal(first, batches(1, "topk", b_dec_init_method="zeros", lr=3.0))
    assert not torch.equal(first, batches(2))
    per_epoch = 40 * 16 // BATCH
    assert not torch.equal(first[:per_epoch], first[per_epoch : 2 * per_epoch])
