"""Saving a dataset to a folder so that nobody ever reads half of one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens.atomic_files import atomic_write_json

if TYPE_CHECKING:
    from datasets import Dataset

_STATE = "state.json"  # what makes a folder a saved dataset


def save_dataset(
    dataset: Dataset, folder: Path, descriptions: Mapping[str, Mapping[str, Any]]
) -> None:
    """Save a dataset with JSON files beside it; an older dataset in the folder is replaced.

    It is written beside the folder first. A dataset that was there keeps standing until the new
    one is whole, and what makes a folder a dataset is moved in last.

    Args:
        dataset: what to save.
        folder: where; created with its parents.
        descriptions: file name -> content.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.unfinished-"))
    try:
        dataset.save_to_disk(str(beside))
        for name, content in descriptions.items():
            atomic_write_json(beside / name, dict(content), indent=2)
        folder.mkdir(exist_ok=True)
        if (folder / _STATE).exists():
            (folder / _STATE).unlink()
            for old in folder.glob("data-*.arrow"):
                old.unlink()
        for file in sorted(beside.iterdir(), key=lambda file: file.name == _STATE):
            shutil.move(file, folder / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
