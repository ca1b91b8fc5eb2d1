"""The folder of one run: its checkpoints, which of them is the latest, and which are kept.

`latest` is a text file with the name of the newest checkpoint to go on from. It is replaced
atomically after that checkpoint is complete, so it never names one that is half written.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import warnings
from pathlib import Path

from sae_lens.atomic_files import atomic_write_bytes
from sae_lens.training.resume_files import (
    RESUME_INDEX_FILENAME,
    DamagedCheckpointError,
    ResumableCheckpoint,
    is_plain_name,
    read_index,
    read_resume_files,
)

logger = logging.getLogger(__name__)

LATEST_FILENAME = "latest"
BEST_NAME = "best"

_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.[^.]{8}\.(?P<kind>tmp|old)$")


def mark_latest(folder: Path) -> None:
    """Make the checkpoint `folder` the one that `latest` of its run stands for."""
    atomic_write_bytes(folder.parent / LATEST_FILENAME, f"{folder.name}\n".encode())


def latest_name(run_folder: Path) -> str | None:
    """The name in the run's `latest`; None when there is no such file or no name in it."""
    try:
        name = (run_folder / LATEST_FILENAME).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if is_plain_name(name) else None


def checkpoints_to_go_on_from(run_folder: Path) -> list[Path]:
    """The checkpoint folders of a run that have a state to go on from, the newest first.

    Only their descriptions are read, not their contents.
    """
    found: list[tuple[int, float, Path]] = []
    if not run_folder.is_dir():
        return []
    for folder in run_folder.iterdir():
        if folder.name.startswith(".") or not (folder / RESUME_INDEX_FILENAME).is_file():
            continue
        try:
            n_tokens = read_index(folder)["n_training_tokens"]
        except (OSError, ValueError):
            n_tokens = -1  # damaged: it is tried last, and then says what is wrong with it
        found.append((n_tokens, (folder / RESUME_INDEX_FILENAME).stat().st_mtime, folder))
    return [folder for *_, folder in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def open_checkpoint(path: str | Path) -> ResumableCheckpoint:
    """The checkpoint in a folder; of a run's folder its newest sound one.

    A run's checkpoint that is damaged is passed over with a warning.

    Raises:
        FileNotFoundError: when there is nothing there to go on from.
        DamagedCheckpointError: when that checkpoint, or each of the run, is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path} to go on from.")
    if (path / RESUME_INDEX_FILENAME).exists():
        return read_resume_files(path)
    candidates = checkpoints_to_go_on_from(path)
    named = latest_name(path)
    if named is not None and (path / named) not in candidates:
        warnings.warn(
            f"{path / LATEST_FILENAME} names {named}, but there is no such checkpoint to go on "
            "from. The newest other one is tried.",
            stacklevel=2,
        )
    candidates.sort(key=lambda folder: folder.name != named)  # stable: the others stay newest first
    if not candidates:
        raise FileNotFoundError(
            f"{path} holds no checkpoint with {RESUME_INDEX_FILENAME}, so no run can go on from "
            "it. To start from a checkpoint's weights, give its folder as from_pretrained_path."
        )
    problems: list[str] = []
    for folder in candidates:
        try:
            checkpoint = read_resume_files(folder)
        except DamagedCheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(
                f"{' '.join(problems)} Going on from {folder.name}, the newest sound checkpoint, "
                "instead.",
                stacklevel=2,
            )
        return checkpoint
    raise DamagedCheckpointError(f"No checkpoint in {path} is sound. {' '.join(problems)}")


def keep_only_last(run_folder: Path, n: int) -> None:
    """Remove all but the `n` newest checkpoints along the way; `final_...` and `best` stay."""
    along_the_way = [
        folder for folder in checkpoints_to_go_on_from(run_folder) if folder.name.isdecimal()
    ]
    for folder in along_the_way[n:]:
        # Out of sight first: a folder that is half removed must not look like a checkpoint.
        doomed = Path(tempfile.mkdtemp(dir=run_folder, prefix=f".{folder.name}.", suffix=".tmp"))
        folder.rename(doomed / "old")
        shutil.rmtree(doomed, ignore_errors=True)


def clear_leftovers(run_folder: Path) -> None:
    """Remove what a killed process left half written; put back what it was about to replace."""
    if not run_folder.is_dir():
        return
    for entry in list(run_folder.iterdir()):
        match = _LEFTOVER.match(entry.name)
        if match is None:
            continue
        replaced, target = entry / "old", run_folder / match["name"]
        if match["kind"] == "old" and replaced.is_dir() and not target.exists():
            replaced.rename(target)
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
