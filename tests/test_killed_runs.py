"""Real processes, real signals: what was interrupted goes on as if nothing had happened.

`make test-slow` prints how many interruptions there were; docs/resumption.md quotes it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_lens.training.resume_files import read_resume_files
from sae_lens.training.run_folder import latest_name
from tests.helpers import ARCHITECTURES
from tests.runs import (
    BATCH,
    LATER_FORM,
    assert_same_weights,
    losses_by_step,
    run_config,
    start,
    train,
)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.filterwarnings("ignore:All samples in the training dataset"),
]

N_STEPS = 60
FINAL = f"run/final_{N_STEPS * BATCH}/sae_weights.safetensors"
FIELDS: dict[str, Any] = {"training_tokens": N_STEPS * BATCH, "n_checkpoints": 12, "keep_last": 3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / FINAL)


def wait_until_ready(folder: Path, process: Any) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "ready").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)


def assert_latest_is_sound(folder: Path) -> None:
    run = folder / "run"
    if run.is_dir() and (name := latest_name(run)) is not None:
        read_resume_files(run / name)


def interrupt_until_done(
    folder: Path, fields: dict[str, Any], seed: int, n_interruptions: int
) -> Counter[str]:
    """Kill the run so many times at random moments, going on each time; then let it finish.

    A run that is done before its signal arrives is begun again in a folder of its own.
    """
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    duration = 0.8
    while done.total() < n_interruptions:
        process = start(folder, fields)
        wait_until_ready(folder, process)
        time.sleep(chance.uniform(0, duration / 4))
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        assert process.pid is not None
        with suppress(ProcessLookupError):  # it is done, and was waited for
            os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode in (0, 7, -number), process.exitcode
        assert_latest_is_sound(folder)
        if process.exitcode == 0 or (folder / FINAL).exists():
            if done:
                break
            # done before its first signal: begin again, and do not wait as long
            shutil.rmtree(folder)
            duration /= 2
            continue
        done[number.name] += 1
    process = start(folder, fields)
    process.join(120)
    assert process.exitcode == 0
    return done


@pytest.mark.parametrize("architecture", ["jumprelu", LATER_FORM])
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    architecture: str, tmp_path: Path
) -> None:
    fields = {**FIELDS, "architecture": architecture}
    train(run_config(tmp_path / "whole", **fields))
    done = interrupt_until_done(tmp_path / "killed", fields, seed=1, n_interruptions=3)
    assert done.total() > 0
    assert_same_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    whole, killed = (losses_by_step(tmp_path / name / "log.jsonl") for name in ("whole", "killed"))
    assert killed == whole
    kept = [path.name for path in (tmp_path / "killed" / "run").iterdir() if path.is_dir()]
    assert len(kept) == 4  # the last three, the final one, and nothing half written


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, LATER_FORM])
def test_twenty_interruptions_of_each_architecture(architecture: str, tmp_path: Path) -> None:
    fields = {**FIELDS, "architecture": architecture}
    train(run_config(tmp_path / "whole", **fields))
    done: Counter[str] = Counter()
    n_runs = 0
    while done.total() < 20:
        folder = tmp_path / f"killed{n_runs}"
        done += interrupt_until_done(folder, fields, n_runs, 20 - done.total())
        assert_same_weights(weights(folder), weights(tmp_path / "whole"))
        assert losses_by_step(folder / "log.jsonl") == losses_by_step(
            tmp_path / "whole" / "log.jsonl"
        )
        n_runs += 1
    print(f"\n{architecture}: {done.total()} interruptions of {n_runs} runs: {dict(done)}")


def die_while_writing(folder: Path, moment: int) -> bool:
    """One run that dies at that moment of writing; whether it did so before its end."""
    process = start(folder, FIELDS, dies_at=moment)
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    assert_latest_is_sound(folder)
    return process.exitcode != 0


@pytest.mark.parametrize("moments", [range(2, 60, 19)], ids=["some"])
def test_a_kill_in_the_middle_of_writing_leaves_the_previous_checkpoint(
    moments: range, tmp_path: Path
) -> None:
    train(run_config(tmp_path / "whole", **FIELDS))
    assert all(die_while_writing(tmp_path / "killed", moment) for moment in moments)
    start(tmp_path / "killed", FIELDS).join(120)
    assert_same_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_a_kill_at_every_moment_of_writing(tmp_path: Path) -> None:
    """Each process dies one moment later than the one before, in a run of its own."""
    train(run_config(tmp_path / "whole", **FIELDS))
    moment = n_deaths = 0
    while die_while_writing(tmp_path / f"killed{moment}", moment) and moment < 60:
        folder = tmp_path / f"killed{moment}"
        start(folder, FIELDS).join(120)
        assert_same_weights(weights(folder), weights(tmp_path / "whole"))
        n_deaths += 1
        moment += 1
    assert n_deaths > 40
    print(f"\n{n_deaths} kills while a checkpoint was written")


def test_a_signal_makes_a_checkpoint_without_stopping(tmp_path: Path) -> None:
    fields = {"training_tokens": 10**7, "eval_every_n_wandb_logs": 10**6}
    process = start(tmp_path, fields)
    wait_until_ready(tmp_path, process)
    try:
        for n in (1, 2):
            steps = tmp_path / "log.jsonl"
            while not steps.exists() or steps.read_text().count("mse_loss") < 5 * n:
                time.sleep(0.02)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGUSR1)
            deadline = time.monotonic() + 60
            while len(list(tmp_path.glob("run/[0-9]*"))) < n:
                assert process.is_alive() and time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        process.terminate()
        process.join(60)
    assert process.exitcode == 7
    for folder in tmp_path.glob("run/[0-9]*"):
        assert read_resume_files(folder).n_training_tokens == int(folder.name)
