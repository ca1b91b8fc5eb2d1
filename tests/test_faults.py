"""What can go wrong around a run, done to real runs and files."""

from __future__ import annotations

import errno
import gc
import json
import logging
import math
import os
import resource
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from sae_lens import atomic_files
from sae_lens.activations import retrying
from sae_lens.activations.halving import HalvingRunner
from sae_lens.activations.store import ActivationsStore
from sae_lens.errors import DataSourceError
from sae_lens.sae_training_runner import InterruptedException
from sae_lens.saes.training import TrainingSAE
from sae_lens.training.evaluation import InModelEvaluator
from sae_lens.training.nonfinite import MOST_SKIPPED_IN_A_ROW, NonFiniteLossError
from sae_lens.training.random_states import random_state
from sae_lens.training.resume_files import DamagedCheckpointError, read_resume_files
from sae_lens.training.run_folder import clear_leftovers, latest_name, open_checkpoint
from tests.helpers import tiny_model
from tests.runs import (
    BATCH,
    assert_same_weights,
    losses_by_step,
    make_runner,
    run_config,
    token_rows,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")

N_STEPS = 30


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Any) -> dict[str, Tensor]:
    return train(run_config(tmp_path_factory.mktemp("whole")), model)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run").iterdir())


# -- disks ----------------------------------------------------------------------------------------


class FullDisk:
    """Every file that is written while it is full ends after some bytes, as the kernel does it."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.n_bytes, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("n_bytes", [100, 3000, 5000, 20000])
def test_a_file_that_does_not_fit_is_named_and_the_last_checkpoint_stays(
    n_bytes: int, tmp_path: Path, model: Any
) -> None:
    runner = make_runner(run_config(tmp_path, log_to_jsonl=None, n_checkpoints=3), model)
    train(run_config(tmp_path, n_checkpoints=3, log_to_jsonl=None), model)
    before = names(tmp_path)
    sound = latest_name(tmp_path / "run")
    with FullDisk(n_bytes), pytest.raises(OSError, match=r"\.(safetensors|json)"):
        runner.run()
    assert names(tmp_path) == before
    assert latest_name(tmp_path / "run") == sound
    open_checkpoint(tmp_path / "run")


def test_a_checkpoint_on_the_way_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, model: Any, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    real, n_written = atomic_files.save_file, []

    def full(tensors: Any, path: str, **kwargs: Any) -> None:
        n_written.append(path)
        if "/final" not in path and ".final" not in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **kwargs)

    monkeypatch.setattr(atomic_files, "save_file", full)
    assert_same_weights(train(run_config(tmp_path, n_checkpoints=3), model), whole)
    assert names(tmp_path) == [f"final_{BATCH * N_STEPS}", "latest"]
    assert caplog.text.count("was not saved, and training goes on") == 2
    assert "sae_weights.safetensors could not be written" in caplog.text


def test_the_folder_may_be_removed_during_the_run(
    tmp_path: Path, model: Any, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.trainer import SAETrainer

    real = SAETrainer._train_step

    def remove(self: SAETrainer, **arguments: Any) -> Any:
        if self.n_training_steps == 20:
            shutil.rmtree(tmp_path)
        return real(self, **arguments)

    monkeypatch.setattr(SAETrainer, "_train_step", remove)
    assert_same_weights(train(run_config(tmp_path, n_checkpoints=3), model), whole)
    assert f"final_{BATCH * N_STEPS}" in names(tmp_path)
    open_checkpoint(tmp_path / "run")


def test_half_written_folders_are_cleared_and_replaced_ones_put_back(tmp_path: Path) -> None:
    (tmp_path / ".96.abcdefgh.tmp").mkdir()
    (tmp_path / ".latest.abcdefgh.tmp").write_text("9")
    for name in ("64", "32"):
        old = tmp_path / f".{name}.abcdefgh.old" / "old"
        old.mkdir(parents=True)
        (old / "file").write_text("old")
    (tmp_path / "32").mkdir()
    (tmp_path / "32" / "file").write_text("new")
    (tmp_path / ".notes").write_text("mine")
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes", "32", "64"]
    assert (tmp_path / "64" / "file").read_text() == "old"
    assert (tmp_path / "32" / "file").read_text() == "new"


def test_a_pointer_that_leads_elsewhere_is_not_followed(tmp_path: Path, model: Any) -> None:
    train(run_config(tmp_path, n_checkpoints=2), model)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    for text in ("../other/final_960", "nothing", "", "\x00", ".."):
        (tmp_path / "run" / "latest").write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert open_checkpoint(tmp_path / "run").folder.parent == tmp_path / "run"
    final = tmp_path / "run" / f"final_{BATCH * N_STEPS}"
    index = final / "resume_state.json"
    index.write_text(index.read_text().replace('"cfg.json"', '"../cfg.json"'))
    with pytest.raises(DamagedCheckpointError, match=r"resume_state\.json"):
        read_resume_files(final)


# -- which checkpoints are made and kept ----------------------------------------------------------


def test_only_the_last_are_kept(tmp_path: Path, model: Any) -> None:
    train(run_config(tmp_path, n_checkpoints=10, keep_last=2), model)
    found = [name for name in names(tmp_path) if name != "latest"]
    assert len(found) == 3
    assert [int(name) > BATCH * 24 for name in found[:2]] == [True, True]


def test_checkpoints_by_the_clock(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training import checkpoint_policy

    minutes = iter(range(10**6))
    monkeypatch.setattr(checkpoint_policy.time, "monotonic", lambda: 60.0 * next(minutes))
    train(run_config(tmp_path, checkpoint_every_minutes=9.5), model)
    assert 2 <= len([name for name in names(tmp_path) if name.isdecimal()]) <= 4


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_by_a_held_out_metric_is_kept(mode: str, tmp_path: Path, model: Any) -> None:
    metric = "reconstruction_quality/mse"
    held_out = tmp_path / "held_out"
    Dataset.from_dict({"tokens": token_rows(50)[40:]}).save_to_disk(held_out)
    fields = {"keep_best_metric": metric, "keep_best_mode": mode, "lr": 0.02,
              "eval_dataset_path": str(held_out), "eval_every_n_wandb_logs": 4}  # fmt: skip
    train(run_config(tmp_path, **fields), model)
    lines = [
        line for line in (tmp_path / "log.jsonl").read_text().splitlines() if "ce_loss" in line
    ]
    evaluated = {line["step"]: line["reconstruction_quality"]["mse"]
                 for line in map(json.loads, lines)}  # fmt: skip
    best = (max if mode == "max" else min)(evaluated, key=lambda step: evaluated[step])
    kept = read_resume_files(tmp_path / "run" / "best")
    assert kept.n_training_tokens == (best + 1) * BATCH
    assert latest_name(tmp_path / "run") == f"final_{BATCH * N_STEPS}"
    # the same without any logs; a name that does not exist is refused with those that do
    silent = tmp_path / "silent"
    train(run_config(silent, log_to_jsonl=None, **fields), model)
    assert read_resume_files(silent / "run" / "best").n_training_tokens == (best + 1) * BATCH
    with pytest.raises(ValueError, match=metric):
        train(run_config(silent, **{**fields, "keep_best_metric": "mse"}), model)


# -- data -----------------------------------------------------------------------------------------


class Unreliable:
    """Rows of which some cannot be read at first; each fails so many times."""

    def __init__(self, errors: dict[int, list[Exception]]) -> None:
        self.errors = errors
        self.rows = token_rows()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.rows):
            if self.errors.get(number):
                raise self.errors[number].pop(0)
            yield {"tokens": row}


class Answer(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.response = type("Response", (), {"status_code": status})()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", waited.append)
    return waited


def network_errors() -> dict[int, list[Exception]]:
    wrapped = RuntimeError("shard 3")
    wrapped.__cause__ = ConnectionResetError("peer")
    return {
        0: [], 7: [TimeoutError("slow"), Answer(503)], 23: [wrapped],
        39: [ConnectionError("x") for _ in retrying.WAITS],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["iterable", "streaming"])
def test_a_network_that_fails_for_a_while_changes_nothing(
    kind: str, tmp_path: Path, model: Any, no_waiting: list[float], whole: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    data: Any = Unreliable(network_errors())
    if kind == "streaming":
        data = IterableDataset.from_generator(lambda: iter(FAILING))
        FAILING.errors = network_errors()
    assert_same_weights(train(run_config(tmp_path), model, data), whole)
    assert no_waiting == [1, 3, 1, *retrying.WAITS]
    assert caplog.text.count("trying again") == 3 + len(retrying.WAITS)


FAILING = Unreliable({})


@pytest.mark.parametrize(
    "errors",
    [[ValueError("bad shard")], [Answer(404)], [ConnectionError("gone")] * 99],
    ids=["value", "404", "network"],
)
def test_data_that_end_in_an_error_leave_a_checkpoint_to_go_on_from(
    errors: list[Exception], tmp_path: Path, model: Any, no_waiting: list[float],
    whole: dict[str, Tensor],
) -> None:  # fmt: skip
    del no_waiting
    with pytest.raises(DataSourceError, match=f"the dataset.*{errors[0]}"):
        train(run_config(tmp_path), model, Unreliable({31: errors}))
    assert latest_name(tmp_path / "run") is not None
    cfg = run_config(tmp_path, resume_from_checkpoint="latest")
    assert_same_weights(train(cfg, model, Unreliable({})), whole)


def test_data_that_can_be_read_once_only_are_not_taken_for_ended(model: Any) -> None:
    store = ActivationsStore.from_config(
        model,
        run_config("unused"),
        override_dataset=ReadOnce(Unreliable({9: [ConnectionError("peer")]})),
    )
    with pytest.raises(DataSourceError, match="peer"):
        for _ in range(10):
            store.get_batch_tokens()


class ReadOnce:
    """A first look shows a row; then the rows come once."""

    def __init__(self, rows: Unreliable) -> None:
        self.rows = iter(rows)

    def __iter__(self) -> ReadOnce:
        return self

    def __next__(self) -> Any:
        return next(self.rows)


# -- W&B ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", ["at once", "in the middle", "at the end"])
def test_training_goes_on_without_wandb(
    dies: str, tmp_path: Path, model: Any, whole: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import wandb

    taken, modes = [], []

    def init(**kwargs: Any) -> None:
        modes.append(kwargs.get("mode"))
        if dies == "at once" and kwargs.get("mode") != "offline":
            raise ConnectionError("no route")

    def log(values: Any, step: int) -> None:
        del values
        if dies == "in the middle" and 5 <= step < 12:
            raise BrokenPipeError("service died")
        taken.append(step)

    def finish(**_: Any) -> None:
        if dies == "at the end":
            raise TimeoutError("slow")

    for name, fake in (("init", init), ("log", log), ("finish", finish)):
        monkeypatch.setattr(wandb, name, fake)
    monkeypatch.setattr(wandb, "log_artifact", lambda *_, **__: 1 / 0)
    cfg = run_config(tmp_path, log_to_wandb=True, log_to_jsonl=None)
    assert_same_weights(train(cfg, model), whole)
    gap = tmp_path / "run" / "wandb_gap.jsonl"
    if dies == "at once":
        assert modes == [None, "offline"]
        assert "wandb sync" in caplog.text
    elif dies == "in the middle":
        assert set(taken) == {*range(5), *range(12, 30)}
        assert set(losses_by_step(gap)) == set(range(5, 12))
        assert "of steps 5 to 11" in caplog.text
    assert gap.exists() == (dies == "in the middle")


# -- numbers that are not finite ------------------------------------------------------------------


def put_nan(batch: Tensor) -> None:
    batch[3] = math.nan


def spoiled_store(
    monkeypatch: pytest.MonkeyPatch, steps: set[int], by: Callable[[Tensor], Any] = put_nan
) -> None:
    """Spoil the training batches of these numbers, counted as they are drawn."""
    real, drawn = ActivationsStore.next_batch, []

    def next_batch(self: ActivationsStore) -> Tensor:
        batch = real(self)
        if len(drawn) in steps:
            by(batch)
        drawn.append(0)
        return batch

    monkeypatch.setattr(ActivationsStore, "next_batch", next_batch)


def test_a_bad_batch_is_skipped_if_asked(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled_store(monkeypatch, {4, 9, 10})
    final = train(run_config(tmp_path, on_nan="skip_batch", log_to_jsonl=None), model)
    assert all(torch.isfinite(tensor).all() for tensor in final.values())
    assert caplog.text.count("is skipped") == 3
    spoiled_store(monkeypatch, set(range(100)))
    cfg = run_config(tmp_path / "b", on_nan="skip_batch", log_to_jsonl=None)
    with pytest.raises(NonFiniteLossError, match=f"step {MOST_SKIPPED_IN_A_ROW}"):
        train(cfg, model)


def test_a_spike_is_left_out_or_stops_the_run(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled_store(monkeypatch, {61}, by=lambda batch: batch.mul_(50))
    fields = {"training_tokens": BATCH * 70, "loss_spike_factor": 10.0, "log_to_jsonl": None}
    with pytest.raises(NonFiniteLossError, match="step 61 is more than 10.0 times"):
        train(run_config(tmp_path, **fields), model)
    assert latest_name(tmp_path / "run") == str(61 * BATCH)
    monkeypatch.undo()
    spoiled_store(monkeypatch, {61}, by=lambda batch: batch.mul_(50))
    left_out = train(run_config(tmp_path / "b", on_nan="skip_batch", **fields), model)
    assert caplog.text.count("is skipped") == 1
    # the stopped run holds the bad batch, and goes on without it
    monkeypatch.undo()
    cfg = run_config(tmp_path, on_nan="skip_batch", resume_from_checkpoint="latest", **fields)
    assert_same_weights(train(cfg, model), left_out)
    with pytest.raises(ValueError, match="loss_spike_factor is 1.0; it must be above 1"):
        run_config(tmp_path, loss_spike_factor=1.0)


def test_rewinding_goes_back_and_on_with_other_data(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled_store(monkeypatch, {14, 16, 27})
    cfg = run_config(tmp_path, on_nan="rewind", n_checkpoints=6)
    final = train(cfg, model)
    assert caplog.text.count("Going back to checkpoint") == 3
    assert all(torch.isfinite(tensor).all() for tensor in final.values())
    assert f"final_{BATCH * N_STEPS}" in names(tmp_path)
    # from any checkpoint, also one after a rewind, it goes on to the same weights
    last = max((name for name in names(tmp_path) if name.isdecimal()), key=int)
    spoiled_store(monkeypatch, set())
    cfg = run_config(tmp_path, on_nan="rewind", n_checkpoints=6,
                     resume_from_checkpoint=str(tmp_path / "run" / last))  # fmt: skip
    assert_same_weights(train(cfg, model), final)


def test_rewinding_gives_up(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled_store(monkeypatch, {2})
    with pytest.raises(NonFiniteLossError):
        train(run_config(tmp_path / "a", on_nan="rewind"), model)
    assert "no checkpoint to go back to" in caplog.text
    spoiled_store(monkeypatch, set(range(12, 100)))
    with pytest.raises(NonFiniteLossError):
        train(run_config(tmp_path / "b", on_nan="rewind", n_checkpoints=3), model)
    assert caplog.text.count("Going back") == 3


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_a_batch_that_does_not_fit_is_run_in_halves(error: Exception) -> None:
    sizes: list[int] = []

    def run(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise error
        return rows * 2

    halving, batch = HalvingRunner(), torch.arange(16.0).reshape(8, 2)
    for _ in range(2):
        assert torch.equal(halving(run, batch), batch * 2)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]

    def fails(_: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)):
        halving(fails, batch)
    with pytest.raises(RuntimeError, match="shape"):
        HalvingRunner()(wrong, batch)


def wrong(_: Tensor) -> Tensor:
    raise RuntimeError("shape mismatch")


def test_a_run_with_little_memory_trains_the_same(
    tmp_path: Path, model: Any, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = ActivationsStore._run_model, []

    def run(self: ActivationsStore, tokens: Tensor) -> Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: not enough memory")
        return real(self, tokens)

    monkeypatch.setattr(ActivationsStore, "_run_model", run)
    with pytest.raises(RuntimeError, match="not enough memory"):
        train(run_config(tmp_path, log_to_jsonl=None), model)
    got = train(run_config(tmp_path, auto_batch=True, log_to_jsonl=None), model)
    assert sizes.count(4) == 2
    for name, tensor in whole.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=1e-4)


# -- nothing is left behind -----------------------------------------------------------------------


def test_a_run_whose_model_ran_out_of_memory_goes_on_with_parts_of_the_same_size(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def short_of_memory(largest: int) -> None:
        def run(self: ActivationsStore, tokens: Tensor) -> Tensor:
            sizes.append(len(tokens))
            if len(tokens) > largest:
                raise MemoryError
            return real(self, tokens)

        monkeypatch.setattr(ActivationsStore, "_run_model", run)

    real = ActivationsStore._run_model
    short_of_memory(2)
    train(run_config(tmp_path, auto_batch=True, n_checkpoints=2), model)
    sizes.clear()
    short_of_memory(100)
    checkpoint = min(tmp_path.glob("run/[0-9]*"), key=lambda folder: int(folder.name))
    cfg = run_config(tmp_path, auto_batch=True, resume_from_checkpoint=str(checkpoint))
    train(cfg, model)
    assert set(sizes[1:]) <= {1, 2}  # the first call is the check of the hook, on one prompt


def surroundings(model: Any) -> dict[str, Any]:
    gc.collect()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()
                          if not thread.name.startswith("tqdm")),
        "handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "files": sorted(str(path.resolve()) for path in Path("/proc/self/fd").iterdir()
                        if "run" in str(path.resolve()) and "pytest" in str(path.resolve())),
        "hooks": [name for name, point in model.hook_dict.items()
                  if point.fwd_hooks or point.bwd_hooks or point._forward_hooks],
        "grad": torch.is_grad_enabled(),
        "training": model.training,
        "log level": logging.getLogger("sae_lens").level,
        "warnings": list(warnings.filters),
    }  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="lists open files by /proc")
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("end", ["success", "loss", "model", "SAE", "signal", "evaluation"])
def test_nothing_is_left_behind(
    end: str, prefetch: int, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: dict[str, Any] = {"success": (), "loss": NonFiniteLossError, "model": ZeroDivisionError,
                            "SAE": ZeroDivisionError, "evaluation": ZeroDivisionError,
                            "signal": InterruptedException}  # fmt: skip
    if end == "loss":
        spoiled_store(monkeypatch, {17})
    elif end != "success":
        owner, name, at = {
            "model": (type(model.blocks[0].mlp), "forward", 24),
            "SAE": (TrainingSAE, "training_forward_pass", 9),
            "evaluation": (InModelEvaluator, "__call__", 2),
            "signal": (type(model.blocks[0].mlp), "forward", 24),
        }[end]
        calls: list[None] = []
        real = getattr(owner, name)

        def broken(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) == at:
                if end != "signal":
                    raise ZeroDivisionError
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, broken)
    before = surroundings(model)
    torch.manual_seed(99)
    np.random.seed(98)
    generators = random_state()
    cfg = run_config(tmp_path, n_checkpoints=3, prefetch_batches=prefetch)
    if end != "success":
        with pytest.raises(ends[end]):
            train(cfg, model)
    else:
        train(cfg, model)
    monkeypatch.undo()
    assert surroundings(model) == before
    after = random_state()
    assert torch.equal(after["torch"], generators["torch"])
    assert torch.equal(after["numpy"]["keys"], generators["numpy"]["keys"])
    assert torch.equal(after["python"]["words"], generators["python"]["words"])
    assert not [name for name in names(tmp_path) if name.startswith(".")]
