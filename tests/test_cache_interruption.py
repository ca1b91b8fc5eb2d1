"""A process that writes a cache is killed at random moments; the cache comes out the same."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from sae_lens import cache_activations_runner
from sae_lens.cache_activations_runner import CacheActivationsRunner
from sae_lens.config import CacheActivationsRunnerConfig
from tests.helpers import tiny_model
from tests.test_cache_activations_runner import (
    assert_same_as_uninterrupted,
    in_child_process,
    make_cfg,
)

_FILE_EVENTS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.scandir",
    "os.listdir",
)


@pytest.fixture(autouse=True)
def _tiny_model_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(cache_activations_runner, "load_model", lambda *_, **__: model)


def run_and_kill(cfg: CacheActivationsRunnerConfig, at: int) -> int:
    """Run in a process that SIGKILL ends before its file operation number `at`.

    Returns:
        How many file operations there were when it came to its end alive, else the exit code.
    """

    def work() -> int:
        folder, count = str(cfg.new_cached_activations_path), 0

        def watch(event: str, arguments: Any) -> None:
            nonlocal count
            if event in _FILE_EVENTS and folder in str(arguments[0]):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        CacheActivationsRunner(cfg).run()
        return count

    return in_child_process(work)


def go_on(cfg: CacheActivationsRunnerConfig) -> None:
    """Run to the end, unless the run that was killed had only its last clearing up left."""
    folder = Path(str(cfg.new_cached_activations_path))
    try:
        CacheActivationsRunner(cfg).run()
    except FileExistsError:
        assert (folder / "state.json").exists()
        assert not list((folder / ".tmp_shards").iterdir())
        (folder / ".tmp_shards").rmdir()


@pytest.mark.parametrize("shuffle", [False, True])
def test_killed_at_any_file_operation(tmp_path: Path, shuffle: bool) -> None:
    cfg = make_cfg(tmp_path, shuffle=shuffle)
    n_operations = run_and_kill(cfg, at=0)
    assert n_operations > 30
    assert_same_as_uninterrupted(tmp_path, cfg)
    # Where it matters most is the end, when files move to their places.
    end = n_operations - 25
    moments = [1, *random.sample(range(2, end), 4), *random.sample(range(end, n_operations + 1), 4)]
    for moment in moments:
        cfg.new_cached_activations_path = str(tmp_path / f"killed-{moment}")
        assert run_and_kill(cfg, at=moment) == -signal.SIGKILL
        folder = Path(cfg.new_cached_activations_path)
        if not (folder / "state.json").exists():
            with pytest.raises(FileNotFoundError):
                load_from_disk(str(folder))
        go_on(cfg)
        assert_same_as_uninterrupted(tmp_path, cfg)


def test_killed_again_and_again(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, shuffle=True)
    killed = 0
    for _ in range(40):
        if run_and_kill(cfg, at=random.randint(10, 40)) != -signal.SIGKILL:
            break
        killed += 1
    assert killed >= 2
    if not (tmp_path / "cache/state.json").exists() or (tmp_path / "cache/.tmp_shards").exists():
        go_on(cfg)
    assert_same_as_uninterrupted(tmp_path, cfg)
