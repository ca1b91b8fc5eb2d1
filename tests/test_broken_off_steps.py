"""A step that is broken off, by an error or by a signal, is made anew as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from torch import Tensor

from sae_lens.activations.buffer import ShufflingBuffer
from sae_lens.activations.store import ActivationsStore
from sae_lens.sae_training_runner import InterruptedException
from sae_lens.saes.training import TrainingSAE
from sae_lens.training import interruptions, trainer_updates
from sae_lens.training.evaluation import InModelEvaluator
from sae_lens.training.resume_files import read_resume_files
from sae_lens.training.run_folder import latest_name
from sae_lens.training.sources import ActivationSource
from tests.helpers import tiny_model
from tests.runs import (
    BATCH,
    LATER_FORM,
    assert_same_weights,
    losses_by_step,
    make_runner,
    run_config,
    start,
    token_rows,
    train,
)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.filterwarnings("ignore:All samples in the training dataset"),
]

N_STEPS = 30


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


class Broken(Exception):
    pass


class BreakAt:
    """Calls a function through, and does something else at its n-th call, before or after it."""

    def __init__(self, real: Callable[..., Any], n: int, act: Callable[[], None]) -> None:
        self.real, self.n, self.act, self.n_calls = real, n, act, 0

    def __get__(self, owner: Any, kind: type | None = None) -> Callable[..., Any]:
        return self if owner is None else lambda *args, **kwargs: self(owner, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.n_calls += 1
        if self.n_calls == self.n:
            self.act()
        return self.real(*args, **kwargs)


def fail() -> None:
    raise Broken("the model has a hole")


PLACES = {
    "language model": (ActivationsStore, "_run_model"),
    "tokens": (ActivationsStore, "_take_held_rows"),
    "SAE": (TrainingSAE, "training_forward_pass"),
    "backward": (Tensor, "backward"),
    "gradients": (trainer_updates, "gradient_norm"),
    "evaluation": (InModelEvaluator, "__call__"),
    "buffer": (ShufflingBuffer, "take"),
    "source": (ActivationSource, "finished"),
}


@contextmanager
def breaking(place: str, n: int, act: Callable[[], None]) -> Iterator[None]:
    owner, name = PLACES[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, BreakAt(getattr(owner, name), n, act))
        yield


def rows(n: int) -> Dataset:
    """Not a multiple of a batch: the last batch of the language model in an epoch is a part."""
    return Dataset.from_dict({"tokens": token_rows(n)})


def assert_goes_on(
    folder: Path, whole: dict[str, Tensor], model: Any, architecture: str, **fields: Any
) -> None:
    """The run that stopped in `folder` goes on to the weights and losses of the whole one."""
    cfg = run_config(folder, architecture, resume_from_checkpoint="latest", **fields)
    assert_same_weights(train(cfg, model, rows(42)), whole)
    assert losses_by_step(folder / "log.jsonl") == losses_by_step(folder.parent / "whole.jsonl")


CASES = [
    *[(place, n, "standard") for place in PLACES for n in (1, 2, 3)],
    ("language model", 9, "standard"),
    ("language model", 11, LATER_FORM),  # the last part of an epoch
    ("language model", 12, LATER_FORM),
    ("SAE", 14, "standard"),  # the window of the firing statistics begins anew in this step
    ("SAE", 20, LATER_FORM),
    ("gradients", 20, LATER_FORM),
    ("backward", 14, "gated"),
]


@pytest.fixture(scope="module")
def wholes(
    tmp_path_factory: pytest.TempPathFactory, model: Any
) -> Callable[[str], tuple[Path, dict[str, Tensor]]]:
    made: dict[str, tuple[Path, dict[str, Tensor]]] = {}

    def whole(architecture: str, **fields: Any) -> tuple[Path, dict[str, Tensor]]:
        key = f"{architecture} {fields}"
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[key] = (folder, train(run_config(folder, architecture, **fields), model, rows(42)))
        return made[key]

    return whole


@pytest.fixture
def place_for(tmp_path: Path, wholes: Any) -> Callable[..., tuple[Path, dict[str, Tensor]]]:
    """A folder for a run beside the log of the whole one, and that one's weights."""

    def make(architecture: str, **fields: Any) -> tuple[Path, dict[str, Tensor]]:
        folder, weights = wholes(architecture, **fields)
        (tmp_path / "whole.jsonl").write_text((folder / "log.jsonl").read_text())
        (tmp_path / "broken").mkdir(exist_ok=True)
        return tmp_path / "broken", weights

    return make


@pytest.mark.parametrize(("place", "n", "architecture"), CASES)
def test_an_error_leaves_a_checkpoint_of_the_last_whole_step(
    place: str, n: int, architecture: str, place_for: Any, model: Any
) -> None:
    folder, whole = place_for(architecture)
    runner = make_runner(run_config(folder, architecture), model, rows(42))
    with breaking(place, n, fail), pytest.raises(Broken, match="a hole") as raised:
        runner.run()
    saved = latest_name(folder / "run")
    assert saved is not None
    assert str(folder / "run" / saved) in " ".join(getattr(raised.value, "__notes__", [saved]))
    assert_goes_on(folder, whole, model, architecture)


def test_an_error_in_the_middle_of_an_update_leaves_the_checkpoint_before(
    place_for: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = place_for("standard")
    cfg = run_config(folder, n_checkpoints=5)
    real = trainer_updates.clip_and_step
    with monkeypatch.context() as patch, pytest.raises(Broken) as raised:
        patch.setattr(trainer_updates, "clip_and_step", BreakAt(real, 20, fail))
        train(cfg, model, rows(42))
    kept = [path.name for path in (folder / "run").iterdir() if path.name.isdecimal()]
    assert max(map(int, kept)) < 20 * BATCH
    assert kept and all(read_resume_files(folder / "run" / name) for name in kept)
    assert "can go on from" in " ".join(getattr(raised.value, "__notes__", ["can go on from"]))
    assert_goes_on(folder, whole, model, "standard", n_checkpoints=5)


def test_the_same_trainer_goes_on_after_an_error(place_for: Any, model: Any) -> None:
    folder, whole = place_for("standard")
    runner = make_runner(run_config(folder), model, rows(42))
    run, fits = runner.run_trainer_with_interruption_handling, []

    def run_on(one: Any) -> Any:
        """Each time at another place: an error, then on in this process."""
        for place, n in (
            ("language model", 3), ("SAE", 5), ("evaluation", 1), ("tokens", 2), ("buffer", 2),
            ("source", 1),
        ):  # fmt: skip
            with breaking(place, n, fail), pytest.raises(Broken):
                run(one)
            fits.append(one.n_training_steps)
        return run(one)

    runner.run_trainer_with_interruption_handling = run_on  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All samples in the training dataset")
        sae = runner.run()
    assert fits == sorted(fits) and fits[-1] > 0
    assert_same_weights(dict(sae.state_dict()), whole)


# -- gradients that add up ------------------------------------------------------------------------

ADDING_UP = {"features": {"gradient_accumulation_steps": 3}}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_gradients_that_were_adding_up_are_in_the_checkpoint(
    n: int, architecture: str, place_for: Any, model: Any
) -> None:
    folder, whole = place_for(architecture, **ADDING_UP)
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with breaking("SAE", n, stop), pytest.raises(InterruptedException):
        train(run_config(folder, architecture, **ADDING_UP), model, rows(42))
    assert latest_name(folder / "run") == str(n * BATCH)
    assert_goes_on(folder, whole, model, architecture, **ADDING_UP)


@pytest.mark.parametrize(("place", "n", "is_saved"), [("SAE", 5, True), ("backward", 5, False),
                                                     ("backward", 4, True)])  # fmt: skip
def test_an_error_while_gradients_add_up(
    place: str, n: int, is_saved: bool, place_for: Any, model: Any
) -> None:
    folder, whole = place_for("standard", **ADDING_UP)
    with breaking(place, n, fail), pytest.raises(Broken):
        train(run_config(folder, **ADDING_UP), model, rows(42))
    assert latest_name(folder / "run") == (str((n - 1) * BATCH) if is_saved else None)
    if is_saved:
        assert_goes_on(folder, whole, model, "standard", **ADDING_UP)


# -- signals --------------------------------------------------------------------------------------


def kill_twice() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("n", [1, 2])
def test_a_signal_that_comes_twice_leaves_a_checkpoint_to_go_on_from(
    place: str, n: int, place_for: Any, model: Any
) -> None:
    folder, whole = place_for("standard")
    runner = make_runner(run_config(folder), model, rows(42))
    with breaking(place, n, kill_twice), pytest.raises(InterruptedException, match="TERM"):
        runner.run()
    assert latest_name(folder / "run") is not None
    assert_goes_on(folder, whole, model, "standard")


@pytest.mark.parametrize("place", PLACES)
def test_force_leaves_a_checkpoint_to_go_on_from_or_none(
    place: str, place_for: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = place_for("standard")
    runner = make_runner(run_config(folder), model, rows(42))
    monkeypatch.setattr(interruptions, "SAME_REQUEST_SECONDS", 0)
    with breaking(place, 2, kill_twice), pytest.raises(InterruptedException):
        runner.run()
    for name in (folder / "run").glob("[0-9]*") if (folder / "run").exists() else ():
        read_resume_files(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is no checkpoint under")
        assert_goes_on(folder, whole, model, "standard")


def test_a_signal_before_the_first_step_leaves_the_start(place_for: Any, model: Any) -> None:
    folder, whole = place_for("standard", normalize_activations="expected_average_only_in")
    fields = {"normalize_activations": "expected_average_only_in"}
    runner = make_runner(run_config(folder, **fields), model, rows(42))
    patch = pytest.MonkeyPatch()
    real = type(runner.source).prepare

    def prepare(source: Any) -> None:
        kill_twice()
        real(source)

    patch.setattr(type(runner.source), "prepare", prepare)
    with pytest.raises(InterruptedException):
        runner.run()
    patch.undo()
    assert latest_name(folder / "run") in (None, "0")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is no checkpoint under")
        assert_goes_on(folder, whole, model, "standard", **fields)


class Hanging:
    """Rows of which one takes very long, once."""

    def __init__(self, hangs_at: int) -> None:
        self.hangs_at = hangs_at
        self.rows = token_rows(42)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.rows):
            if number == self.hangs_at:
                self.hangs_at = -1
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            yield {"tokens": row}


def test_who_waits_for_data_is_interrupted_at_once(place_for: Any, model: Any) -> None:
    folder, whole = place_for("standard")
    runner = make_runner(run_config(folder), model, Hanging(27))
    begin = time.monotonic()
    with pytest.raises(InterruptedException):
        runner.run()
    assert time.monotonic() - begin < 30
    assert latest_name(folder / "run") is not None
    assert_goes_on(folder, whole, model, "standard")


def test_who_waits_for_batches_made_ahead_is_interrupted_at_once(
    place_for: Any, model: Any
) -> None:
    folder, whole = place_for("standard")
    runner = make_runner(run_config(folder, prefetch_batches=2), model, rows(42))
    begin: list[float] = []

    def kill_and_sleep() -> None:
        begin.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)  # in the thread, which has to come to its end

    with breaking("language model", 4, kill_and_sleep), pytest.raises(InterruptedException):
        runner.run()
    assert time.monotonic() - begin[0] < 20
    assert latest_name(folder / "run") is not None
    assert_goes_on(folder, whole, model, "standard")


def test_a_checkpoint_that_cannot_be_made_does_not_hide_the_error(
    place_for: Any, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = place_for("standard")
    runner = make_runner(run_config(folder), model, rows(42))
    monkeypatch.setattr(ActivationsStore, "save", lambda *_: 1 / 0)
    with breaking("SAE", 3, fail), pytest.raises(Broken):
        runner.run()
    assert "was not saved: ZeroDivisionError" in caplog.text


def interrupt_twice(folder: Path, fields: dict[str, Any], chance: random.Random) -> bool:
    """One run that gets two signals shortly after each other; whether it was still running."""
    process = start(folder, fields)
    deadline = time.monotonic() + 120
    while not (folder / "ready").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.3))
    try:
        for pause in (chance.choice([0, 0.002, 0.05]), 0):
            os.kill(process.pid, chance.choice([signal.SIGINT, signal.SIGTERM]))
            time.sleep(pause)
    except ProcessLookupError:
        pass
    process.join(60)
    assert process.exitcode in (0, 7, -signal.SIGINT, -signal.SIGTERM)
    for name in folder.glob("run/[0-9]*"):
        read_resume_files(name)
    return process.exitcode != 0


@pytest.mark.parametrize("n_runs", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_real_signals_that_come_twice(n_runs: int, tmp_path: Path) -> None:
    fields = {"training_tokens": 60 * BATCH, "n_checkpoints": 12}
    whole = train(run_config(tmp_path / "whole", **fields))
    chance, n_interrupted, folder = random.Random(n_runs), 0, tmp_path / "0"
    for run in range(n_runs):
        if interrupt_twice(folder, fields, chance):
            n_interrupted += 1
            continue
        folder = tmp_path / str(run + 1)
    start(folder, fields).join(60)
    cfg = run_config(folder, resume_from_checkpoint="latest", **fields)
    assert_same_weights(train(cfg), whole)
    assert n_interrupted > 0
    print(f"\n{n_interrupted} runs of {n_runs} were interrupted twice in a row")
