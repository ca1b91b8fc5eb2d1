"""Checkpoints: when they are due, and folders that are complete or not there at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens.atomic_files import atomic_save_safetensors
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME, FILE_FORMAT_VERSION
from sae_lens.saes.config import TrainingSAEConfig
from sae_lens.saes.files import write_sae_folder
from sae_lens.saes.weights import unit_rows_
from sae_lens.training.resume_files import write_resume_files

OPTIMIZER_STATE_FILENAME = "optimizer_state.safetensors"


class UnwritableFolderError(OSError, ValueError):
    """A folder in which nothing can be written."""


def checkpoint_thresholds(total_tokens: int, n_checkpoints: int) -> list[int]:
    """After how many tokens checkpoints are due: multiples of an n-th of the total, below it."""
    if n_checkpoints == 0:
        return []
    interval = max(1, total_tokens // n_checkpoints)
    return list(range(interval, total_tokens, interval))


def ensure_writable(folder: str | Path) -> None:
    """Try to write in `folder`, which need not exist yet; nothing is left behind.

    Raises:
        UnwritableFolderError: when that fails, with the reason.
    """
    folder = Path(folder).absolute()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnwritableFolderError(
            f"Nothing can be written to the checkpoint folder {folder}: {error}. Choose another "
            "checkpoint_path, or make this one writable."
        ) from error
    finally:
        _remove_empty_folders(folder, existing)


def write_checkpoint(
    folder: str | Path,
    sae: Any,
    log_feature_sparsity: Tensor,
    run_config: Mapping[str, Any],
    store: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    normalize_decoder: bool = False,
    resume_state: Mapping[str, Any] | None = None,
    n_training_tokens: int = 0,
) -> dict[str, Path]:
    """Write a checkpoint folder; when this returns it is complete and on disk.

    `cfg.json` is the run's config with the SAE's own values over it, so that it reads as the config
    of the SAE as it now is (after a fold, say) and keeps the run's settings beside them.

    Args:
        folder: where; what another checkpoint left there is replaced.
        sae: the training SAE; not changed.
        log_feature_sparsity: log10 firing densities, [d_sae].
        run_config: the run's config as a dict.
        store: anything with `save(path)`, or None.
        optimizer: its state is written as well, when given.
        normalize_decoder: write the decoder with unit rows.
        resume_state: what the run needs to go on from here; None when it cannot.
        n_training_tokens: how far the run is.

    Returns:
        The paths by what they hold: weights, config, sparsity, store, optimizer.
    """
    state_dict = dict(sae.state_dict())
    if normalize_decoder:
        state_dict["W_dec"] = unit_rows(state_dict["W_dec"])
    sae.process_state_dict_for_saving(state_dict)
    with atomic_folder(folder) as temporary:
        written: dict[str, Path] = dict(
            zip(
                ("weights", "config", "sparsity"),
                write_sae_folder(
                    temporary, checkpoint_config(run_config, sae), state_dict, log_feature_sparsity
                ),
                strict=True,
            )
        )
        if store is not None:
            written["store"] = temporary / ACTIVATIONS_STORE_STATE_FILENAME
            store.save(str(written["store"]))
        if optimizer is not None:
            written["optimizer"] = temporary / OPTIMIZER_STATE_FILENAME
            atomic_save_safetensors(optimizer_tensors(optimizer, sae), written["optimizer"])
        if resume_state is not None:
            write_resume_files(temporary, resume_state, run_config, n_training_tokens)
    return {what: Path(folder) / path.name for what, path in written.items()}


def checkpoint_config(run_config: Mapping[str, Any], sae: Any) -> dict[str, Any]:
    """The contents of a checkpoint's `cfg.json`."""
    sae_config = sae.cfg
    if not hasattr(sae_config, "to_file_dict"):  # a runner config serves as an SAE's config, too
        sae_config = TrainingSAEConfig.from_sae_runner_config(sae_config)
    # Readers of the nested format look at this key before the one inside `metadata`.
    return {**run_config, **sae_config.to_file_dict(), "sae_lens_version": FILE_FORMAT_VERSION}


def unit_rows(matrix: Tensor) -> Tensor:
    """A copy of `matrix` with rows of L2 norm 1."""
    matrix = matrix.detach().clone()
    unit_rows_(matrix)
    return matrix


def optimizer_tensors(optimizer: torch.optim.Optimizer, sae: Any) -> dict[str, Tensor]:
    """The optimiser's state as `{parameter}.{quantity}` -> tensor."""
    return {
        f"{name}.{quantity}": torch.as_tensor(value)
        for name, parameter in sae.named_parameters()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; on success it is flushed and takes its place.

    When the body raises, the temporary folder is removed and what stood there stays. Files of other
    names that an existing folder holds are kept.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        _put_in_place(temporary, target)
        _flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o777 & ~umask)
    if not target.exists():
        os.rename(temporary, target)
        return
    # What is there besides is somebody's: it moves into the new folder.
    new = {file.name for file in temporary.iterdir()}
    foreign = [entry.name for entry in target.iterdir() if entry.name not in new]
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
    # Between these two there is no folder; `run_folder.clear_leftovers` puts the old one back.
    os.rename(target, old / "old")
    os.rename(temporary, target)
    for name in foreign:
        os.rename(old / "old" / name, target / name)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_empty_folders(folder: Path, keep: Path) -> None:
    """Remove `folder` and its parents up to `keep`, which stays."""
    while folder != keep and folder.is_dir():
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
