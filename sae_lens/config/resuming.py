"""Which checkpoint a run's config asks to go on from."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

from sae_lens.config.validation import folder_of_the_run
from sae_lens.training.resume_files import ResumableCheckpoint, read_index
from sae_lens.training.run_folder import (
    LATEST_FILENAME,
    checkpoints_to_go_on_from,
    clear_leftovers,
    open_checkpoint,
)
from sae_lens.training.same_results import MAY_DIFFER, differing_fields, refuse_differences

LATEST = "latest"


def find_checkpoint(cfg: Any, inner: str = "") -> tuple[Any, ResumableCheckpoint | None]:
    """The checkpoint that `cfg.resume_from_checkpoint` asks for, and the config to go on with.

    The run goes on in the folder of the run that made the checkpoint. "latest" looks for that
    folder at `checkpoint_path`, then among the folders in it, and takes the newest run with the
    same settings. When there is none at all yet, the run begins, with a warning.

    Args:
        cfg: the config of a run.
        inner: where in the run's folder the checkpoints are; "" for right there.

    Raises:
        FileNotFoundError: when a folder was named that holds nothing to go on from.
        DamagedCheckpointError: when the checkpoint is damaged (with "latest" or a run's folder:
            when all of them are).
        ValueError: when the config differs from the checkpoint's in what changes results.
    """
    wanted = str(cfg.resume_from_checkpoint)
    if wanted == LATEST:
        run = _latest_run(cfg, inner)
        if run is None:
            warnings.warn(
                f"There is no checkpoint under {cfg.checkpoint_path} to go on from; the run begins "
                "at the start.",
                stacklevel=3,
            )
            return _with_folder(cfg, folder_of_the_run(cfg.checkpoint_path, _id_of(cfg))), None
        folder = run / inner
    else:
        folder = Path(wanted)
        if inner and (folder / inner).is_dir():
            folder = folder / inner
    is_run = bool(checkpoints_to_go_on_from(folder)) or (folder / LATEST_FILENAME).exists()
    checkpoints = folder if is_run else folder.parent
    clear_leftovers(checkpoints)
    checkpoint = open_checkpoint(folder)
    refuse_differences(checkpoint.config, cfg, checkpoint.folder)
    return _with_folder(cfg, str(checkpoints.parent if inner else checkpoints)), checkpoint


def _latest_run(cfg: Any, inner: str) -> Path | None:
    """The folder of the newest run that the config could go on with, else of the newest."""
    base = Path(cfg.checkpoint_path)
    if (base / inner / LATEST_FILENAME).exists():
        clear_leftovers(base / inner)
    if checkpoints_to_go_on_from(base / inner):
        return base
    if _id_of(cfg) is not None or not base.is_dir():
        return None
    runs: list[tuple[bool, float, Path]] = []
    for folder in base.iterdir():
        checkpoints = checkpoints_to_go_on_from(folder / inner)
        if not checkpoints:
            continue
        try:
            fits = not differing_fields(read_index(checkpoints[0])["config"], cfg)
        except (OSError, ValueError):
            fits = False
        runs.append((fits, max(path.stat().st_mtime for path in checkpoints), folder))
    return max(runs, key=lambda run: run[:2])[2] if runs else None


def _id_of(cfg: Any) -> str | None:
    return cfg.wandb_id if hasattr(cfg, "wandb_id") else cfg.logger.wandb_id


def _with_folder(cfg: Any, folder: str) -> Any:
    """A copy of the config whose checkpoints go to `folder`."""
    config = copy.copy(cfg)
    config.checkpoint_path = folder
    return config


__all__ = ["LATEST", "MAY_DIFFER", "differing_fields", "find_checkpoint", "refuse_differences"]
