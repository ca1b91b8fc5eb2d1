"""The folder of an unfinished cache: whose it is, which tokens it takes, which shards are done.

Everything lies in `.tmp_shards` until the cache is whole: `run.json` says what is being made, so
that only the same run goes on with it, `tokens.bin` holds the token rows in reading order, and
`shard_*` are the parts that are done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from sae_lens.activations.cache_files import (
    RUN_FILENAME,
    UNFINISHED,
    consolidate_shards,
    read_plan,
    remove_unfinished,
    rows_in_shard,
    shard_name,
)
from sae_lens.atomic_files import atomic_write_json

if TYPE_CHECKING:
    from datasets import Dataset

_TOKENS_FILENAME = "tokens.bin"
_LOCK_FILENAME = "lock"
# May be there before the run has written down what it is.
_BEFORE_THE_RUN_FILE = (_LOCK_FILENAME, f".{RUN_FILENAME}.*.tmp")


class CacheFolder:
    """A folder in which a cache is being made by this process, and by no other."""

    def __init__(self, path: Path, context_size: int):
        self.path = path
        self.unfinished = path / UNFINISHED
        self._context_size = context_size

    @property
    def tokens(self) -> NDArray[np.int32] | None:
        """All token rows, [row, position], memory-mapped; None before they are collected."""
        file = self.unfinished / _TOKENS_FILENAME
        if not file.is_file():
            return None
        return np.memmap(file, dtype=np.int32, mode="r").reshape(-1, self._context_size)

    def collect_tokens(self, batches: Iterable[Int[Tensor, "batch pos"]]) -> NDArray[np.int32]:
        """Write down token rows, all of them or none.

        Returns:
            As `tokens`.
        """
        unfinished = self.unfinished / f"{_TOKENS_FILENAME}.unfinished"
        with open(unfinished, "wb") as file:
            for batch in batches:
                file.write(batch.to("cpu", torch.int32).contiguous().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        if unfinished.stat().st_size == 0:
            # An empty file cannot be memory-mapped.
            return np.empty((0, self._context_size), dtype=np.int32)
        os.replace(unfinished, self.unfinished / _TOKENS_FILENAME)
        tokens = self.tokens
        assert tokens is not None
        return tokens

    def shard(self, index: int) -> Path:
        """Where a shard is, or will be."""
        return self.unfinished / shard_name(index)

    def has_shard(self, index: int, n_rows: int) -> bool:
        """Whether a shard is done.

        Raises:
            ValueError: when it has another number of rows.
        """
        if not self.shard(index).is_dir():
            return False
        found = rows_in_shard(self.shard(index))
        if found != n_rows:
            raise ValueError(
                f"{self.shard(index)} has {found} rows where {n_rows} belong: it was changed after "
                "it was written. Delete the folder of the cache and start again."
            )
        return True

    @property
    def all_shards_done(self) -> bool:
        """Whether only `finish` is left to be done; some shards may be in their final place."""
        return bool(read_plan(self.unfinished)) or (self.path / "state.json").exists()

    def finish(self) -> Dataset:
        """Make one dataset of the shards; nothing else is left in the folder."""
        from datasets import load_from_disk

        if (self.path / "state.json").exists() and not read_plan(self.unfinished):
            remove_unfinished(self.unfinished)
            return cast("Dataset", load_from_disk(str(self.path)))
        return consolidate_shards(self.unfinished, self.path, copy_files=False)


@contextmanager
def open_cache_folder(
    path: Path, making: Mapping[str, Any], context_size: int
) -> Iterator[CacheFolder]:
    """Take a folder for making a cache: a new or empty one, or one where the same was begun.

    Args:
        path: the folder, which is created with its parents.
        making: all that decides what the cache will hold, as plain values.
        context_size: tokens per prompt.

    Raises:
        FileExistsError: when the folder holds anything else, or the beginning of another cache.
        BlockingIOError: when another process is making it.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file. Choose another new_cached_activations_path.")
    path.mkdir(parents=True, exist_ok=True)
    unfinished = path / UNFINISHED
    _refuse_foreign(path, unfinished)
    unfinished.mkdir(exist_ok=True)
    with _only_process(unfinished / _LOCK_FILENAME):
        run_file = unfinished / RUN_FILENAME
        if run_file.exists() and _has_begun(path, unfinished):
            _refuse_other_run(path, json.loads(run_file.read_text()), _plain(making))
        else:
            atomic_write_json(run_file, _plain(making), indent=2)
        yield CacheFolder(path, context_size)


def free_bytes(path: Path) -> int:
    """Free bytes on the disk on which `path` is, or would be made."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _has_begun(path: Path, unfinished: Path) -> bool:
    """Whether there is anything of use to the run that the folder was taken for."""
    kept = (path / "state.json", unfinished / _TOKENS_FILENAME)
    begun = any(file.exists() for file in kept) or any(unfinished.glob("shard_*"))
    return begun or bool(read_plan(unfinished))


def _refuse_foreign(path: Path, unfinished: Path) -> None:
    ours = {UNFINISHED}
    if (unfinished / RUN_FILENAME).is_file():
        ours |= {"dataset_info.json", "state.json", *read_plan(unfinished).values()}
        if (path / "state.json").is_file():
            ours |= {entry["filename"] for entry in _finished_files(path)}
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    else:
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
        inside = list(unfinished.iterdir()) if unfinished.is_dir() else []
        foreign += sorted(
            f"{UNFINISHED}/{entry.name}"
            for entry in inside
            if not any(fnmatchcase(entry.name, known) for known in _BEFORE_THE_RUN_FILE)
        )
    if foreign:
        raise FileExistsError(
            f"{path} is not empty: it has {', '.join(foreign[:5])}"
            f"{' and more' if len(foreign) > 5 else ''}. Nothing was deleted. Choose another "
            "new_cached_activations_path, or remove the folder yourself."
        )


def _finished_files(path: Path) -> list[dict[str, str]]:
    return json.loads((path / "state.json").read_text())["_data_files"]


def _refuse_other_run(path: Path, begun: dict[str, Any], making: dict[str, Any]) -> None:
    names = sorted(name for name in {*begun, *making} if begun.get(name) != making.get(name))
    if names:
        differing = ", ".join(
            f"{name} was {begun.get(name)!r} and is now {making.get(name)!r}" for name in names
        )
        raise FileExistsError(
            f"{path} is not empty: another run was begun there: {differing}. Nothing was deleted. "
            "To go on with that run, use its settings; for a new one, choose another "
            "new_cached_activations_path or remove the folder yourself."
        )


@contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Hold a lock that the operating system releases however this process ends."""
    try:
        import fcntl
    except ImportError:  # Windows: two runs in one folder are not noticed there
        yield
        return
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"Another process is writing the cache {lock.parents[1]}. Wait for it, or choose "
                "another new_cached_activations_path."
            ) from None
        yield


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON, so that they can be compared."""
    return json.loads(json.dumps(dict(values), default=str))
