"""Which checkpoint a run's config asks to go on from."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

from sae_lens.config.runner import LanguageModelSAERunnerConfig
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


def find_checkpoint(
    cfg: LanguageModelSAERunnerConfig,
) -> tuple[LanguageModelSAERunnerConfig, ResumableCheckpoint | None]:
    """The checkpoint that `cfg.resume_from_checkpoint` asks for, and the config to go on with.

    The run goes on in the folder of the run that made the checkpoint. "latest" looks for that
    folder at `checkpoint_path`, then among the folders in it, and takes the newest run with the
    same settings. When there is none at all yet, the run begins, with a warning.

    Raises:
        FileNotFoundError: when a folder was named that holds nothing to go on from.
        DamagedCheckpointError: when the checkpoint is damaged (with "latest" or a run's folder:
            when all of them are).
        ValueError: when the config differs from the checkpoint's in what changes results.
    """
    wanted = str(cfg.resume_from_checkpoint)
    if wanted == LATEST:
        folder = _latest_run(cfg)
        if folder is None:
            warnings.warn(
                f"There is no checkpoint under {cfg.checkpoint_path} to go on from; the run begins "
                "at the start.",
                stacklevel=3,
            )
            return _with_folder(cfg, folder_of_the_run(cfg.checkpoint_path, cfg.wandb_id)), None
    else:
        folder = Path(wanted)
    is_run = bool(checkpoints_to_go_on_from(folder)) or (folder / LATEST_FILENAME).exists()
    run_folder = folder if is_run else folder.parent
    clear_leftovers(run_folder)
    checkpoint = open_checkpoint(folder)
    refuse_differences(checkpoint.config, cfg, checkpoint.folder)
    return _with_folder(cfg, str(run_folder)), checkpoint


def _latest_run(cfg: LanguageModelSAERunnerConfig) -> Path | None:
    """The folder of the newest run that the config could go on with, else of the newest."""
    base = Path(cfg.checkpoint_path)
    if (base / LATEST_FILENAME).exists():
        clear_leftovers(base)
    if checkpoints_to_go_on_from(base):
        return base
    if cfg.wandb_id is not None or not base.is_dir():
        return None
    runs: list[tuple[bool, float, Path]] = []
    for folder in base.iterdir():
        checkpoints = checkpoints_to_go_on_from(folder)
        if not checkpoints:
            continue
        try:
            fits = not differing_fields(read_index(checkpoints[0])["config"], cfg)
        except (OSError, ValueError):
            fits = False
        runs.append((fits, max(path.stat().st_mtime for path in checkpoints), folder))
    return max(runs, key=lambda run: run[:2])[2] if runs else None


def _with_folder(cfg: LanguageModelSAERunnerConfig, folder: str) -> LanguageModelSAERunnerConfig:
    """A copy of the config whose checkpoints go to `folder`."""
    config = copy.copy(cfg)
    config.checkpoint_path = folder
    return config


__all__ = ["LATEST", "MAY_DIFFER", "differing_fields", "find_checkpoint", "refuse_differences"]
