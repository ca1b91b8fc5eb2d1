"""Trainers on iterators of all kinds go on from a checkpoint exactly, or say why they cannot."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sae_lens.config import SAETrainerConfig
from sae_lens.saes import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.training.counted_batches import CountedBatches
from sae_lens.training.sae_trainer import SAETrainer
from tests.helpers import D_IN

BATCH, N_STEPS = 16, 12
ROWS = torch.randn(40 * BATCH, D_IN, generator=torch.Generator().manual_seed(3))


def generated(start: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for number in itertools.count():
        batch = torch.randn(BATCH, D_IN, generator=generator)
        if number >= start:
            yield batch


class WithState:
    """Knows its place; its rows cannot be had twice otherwise."""

    def __init__(self, extra: Any = None) -> None:
        self.place, self.extra = 0, extra

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.place += 1
            yield ROWS[self.place * 3 : self.place * 3 + BATCH]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "extra": self.extra}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


PROVIDERS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(ROWS.split(BATCH)),
    "generator": generated,
    "three axes": lambda: (batch[:, None] for batch in generated()),
    "bfloat16": lambda: (batch.bfloat16().float() for batch in generated()),
    "shuffling loader": lambda: DataLoader(ROWS, batch_size=BATCH, shuffle=True),  # type: ignore[arg-type]
    "function": lambda: lambda: generated(),
    "function that skips": lambda: generated,
    "state": WithState,
    "state that cannot be saved": lambda: WithState(extra=object()),
}


def make_trainer(provider: Any, folder: Path, **fields: Any) -> SAETrainer:
    torch.manual_seed(0)
    normalization = fields.pop("normalize_activations", "expected_average_only_in")
    l1 = fields.pop("l1_coefficient", 0.1)
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=D_IN, d_sae=24, normalize_activations=normalization, l1_coefficient=l1
        )
    )
    values: dict[str, Any] = {
        "total_training_samples": N_STEPS * BATCH, "train_batch_size_samples": BATCH,
        "checkpoint_path": str(folder), "n_batches_for_norm_estimate": 2, "lr": 1e-2,
        "features": {"gradient_accumulation_steps": 1}, "n_checkpoints": 3,
    }  # fmt: skip
    return SAETrainer(SAETrainerConfig(**{**values, **fields}), sae, provider)


def weights(sae: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


def stop_in_step(trainer: SAETrainer, n: int, act: Callable[[], None]) -> None:
    real = trainer._forward

    def forward(*args: Any) -> Any:
        if trainer.n_training_steps == n:
            act()
        return real(*args)

    trainer._forward = forward  # type: ignore[method-assign]


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", PROVIDERS)
@pytest.mark.parametrize("n", [0, 5])
def test_training_goes_on_with_any_provider(
    kind: str, n: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = PROVIDERS[kind]
    whole = weights(make_trainer(make(), tmp_path / "whole").fit())
    first = make_trainer(make(), tmp_path / "broken", n_checkpoints=0)
    stop_in_step(first, n, interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    assert (tmp_path / "broken" / "latest").read_text().strip() == str(n * BATCH)
    second = make_trainer(make(), tmp_path / "broken", n_checkpoints=0)
    torch.rand(5)
    second.resume()
    got = weights(second.fit())
    assert all(torch.equal(got[name], whole[name]) for name in whole)
    assert ("cannot be saved" in caplog.text) == (kind == "state that cannot be saved")
    for folder in sorted((tmp_path / "whole").glob("[0-9]*")):
        again = make_trainer(make(), tmp_path / "again")
        again.resume(folder)
        got = weights(again.fit())
        assert all(torch.equal(got[name], whole[name]) for name in whole)


def test_other_data_are_refused(tmp_path: Path) -> None:
    make_trainer(generated(), tmp_path).fit()
    checkpoint = sorted(tmp_path.glob("[0-9]*"))[-1]
    for provider, message in (
        (torch.randn(BATCH, D_IN) for _ in range(99)), "not what it was when the checkpoint"
    ), (ROWS.split(BATCH)[:4], "ended after 4 batches, but"):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_trainer(provider, tmp_path).resume(checkpoint)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"lr": 1.0}, "lr is 1.0, in the checkpoint 0.01"),
     ({"l1_coefficient": 3.0}, "l1_coefficient is 3.0, in the checkpoint 0.1"),
     ({"train_batch_size_samples": 8}, "train_batch_size_samples is 8")],
)  # fmt: skip
def test_other_settings_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_trainer(generated(), tmp_path).fit()
    with pytest.raises(ValueError, match=message):
        make_trainer(generated(), tmp_path, **fields).resume()


def test_a_longer_training_goes_on(tmp_path: Path) -> None:
    fields = {"save_final_checkpoint": True}
    whole = weights(
        make_trainer(generated(), tmp_path / "a", total_training_samples=20 * BATCH).fit()
    )
    make_trainer(generated(), tmp_path / "b", **fields).fit()
    longer = make_trainer(generated(), tmp_path / "b", total_training_samples=20 * BATCH)
    longer.resume()
    got = weights(longer.fit())
    assert all(torch.equal(got[name], whole[name]) for name in whole)


class StoreWithoutState:
    estimated_norm_scaling_factor = None

    def set_norm_scaling_factor_if_needed(self) -> None:
        pass

    def next_batch(self) -> Tensor:
        return ROWS[:BATCH, None]


def test_a_store_whose_place_is_unknown_is_named_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(StoreWithoutState(), tmp_path, normalize_activations="none")
    assert "has next_batch, but not save and load" in caplog.text
    trainer.fit()
    with pytest.raises(ValueError, match="or pass an iterable"):
        trainer.resume()


def test_what_is_no_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="is a int; it must be an iterable"):
        make_trainer(3, tmp_path)
    with pytest.raises(ValueError, match="checkpoint_path is None"):
        make_trainer(generated(), tmp_path, checkpoint_path=None).resume()


def test_counting_begins_with_the_first_batch() -> None:
    batches = CountedBatches(lambda: generated())
    assert batches.state_dict()["random_at_start"] is None
    again = CountedBatches(lambda: generated())
    again.load_state_dict(batches.state_dict())
    assert torch.equal(next(batches), next(again))
    assert batches.n_taken == again.n_taken == 1


@pytest.fixture
def usual_handler() -> Iterator[None]:
    """Python's own for SIGINT; a shell starts what runs in its background without one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_handler")
def test_signals_are_put_off_and_handlers_restored(tmp_path: Path) -> None:
    """Where the program has handlers of its own they stay; without checkpoints all do."""
    assert threading.current_thread() is threading.main_thread()
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    trainer = make_trainer(generated(), tmp_path, n_checkpoints=0)
    stop_in_step(trainer, 3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    trainer.fit()
    assert (tmp_path / str(4 * BATCH)).is_dir()
    trainer = make_trainer(generated(), tmp_path / "b", n_checkpoints=0)
    stop_in_step(trainer, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert (tmp_path / "b" / "latest").read_text().strip() == str(4 * BATCH)
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    silent = make_trainer(generated(), tmp_path, checkpoint_path=None)
    stop_in_step(silent, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        silent.fit()
    assert silent.n_training_steps == 3
