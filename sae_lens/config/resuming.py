"""Which settings a run may be given anew when it goes on from a checkpoint, and which not."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from sae_lens.config.runner import LanguageModelSAERunnerConfig
from sae_lens.config.validation import folder_of_the_run
from sae_lens.saes.files import jsonable
from sae_lens.training.resume_files import ResumableCheckpoint, read_index
from sae_lens.training.run_folder import (
    LATEST_FILENAME,
    checkpoints_to_go_on_from,
    clear_leftovers,
    open_checkpoint,
)

LATEST = "latest"

# Settings that do not change what is computed. docs/resumption.md lists them.
MAY_DIFFER = frozenset({
    # what is logged, and where
    "log_to_wandb", "log_activations_store_to_wandb", "log_optimizer_state_to_wandb",
    "log_weights_to_wandb", "log_to_jsonl", "logger", "wandb_project", "wandb_id", "wandb_entity",
    "run_name", "wandb_log_frequency", "eval_every_n_wandb_logs", "n_eval_batches",
    "eval_batch_size_prompts", "eval_dataset_path", "eval_dataset_split",
    "dead_feature_threshold", "verbose",
    # where things lie
    "checkpoint_path", "output_path", "cached_activations_path", "from_pretrained_path",
    "dataset_trust_remote_code", "act_store_device",
    # when checkpoints are made, and what happens when something fails
    "n_checkpoints", "checkpoint_every_minutes", "keep_last", "keep_best_metric", "keep_best_mode",
    "save_final_checkpoint", "resume", "resume_from_checkpoint", "on_nan", "auto_batch",
    "prefetch_batches",
    # how long to train
    "training_tokens", "finetuning_tokens",
    # without effect, or derived from fields that are compared
    "hook_eval", "is_dataset_tokenized", "streaming", "tokens_per_buffer", "sae_lens_version",
    "sae_lens_training_version", "expansion_factor",
})  # fmt: skip

# Another device of the same type computes the same.
_DEVICES = ("device", "llm_device")


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


def differing_fields(
    saved: Mapping[str, Any], cfg: LanguageModelSAERunnerConfig
) -> dict[str, tuple[Any, Any]]:
    """Fields that change results and differ: name -> (in the checkpoint, in the config)."""
    now = json.loads(json.dumps(jsonable(cfg.to_dict())))
    differing: dict[str, tuple[Any, Any]] = {}
    for field in fields(cfg):
        name = field.name
        if name in MAY_DIFFER or name not in now:
            continue
        # A checkpoint from before there was such a field was made with what is now its default.
        default = field.default if field.default_factory is MISSING else field.default_factory()
        before, after = saved.get(name, jsonable(default)), now[name]
        if name in _DEVICES:
            before, after = _device_type(before), _device_type(after)
        elif name == "sae":
            before, after = _without_facts(before), _without_facts(after)
        if before != after:
            differing[name] = (before, after)
    return differing


def refuse_differences(
    saved: Mapping[str, Any], cfg: LanguageModelSAERunnerConfig, checkpoint: Any
) -> None:
    """`ValueError` naming every field in which a config may not differ from a checkpoint's.

    Args:
        saved: the config in the checkpoint, as plain values.
        cfg: the config of the run that is to go on.
        checkpoint: where the checkpoint is, for the message.
    """
    differing = differing_fields(saved, cfg)
    if not differing:
        return
    listed = "; ".join(
        f"{name} is {after!r}, in the checkpoint {before!r}"
        for name, (before, after) in differing.items()
    )
    raise ValueError(
        f"The run cannot go on from {checkpoint} with this config, because other results would "
        f"come of it: {listed}. Set these fields as in the checkpoint, or start a new run from its "
        "weights with from_pretrained_path."
    )


def _device_type(device: Any) -> Any:
    return device.split(":")[0] if isinstance(device, str) else device


def _without_facts(sae: Any) -> Any:
    """The SAE's config without what does not matter for training or stands in other fields."""
    if not isinstance(sae, dict):
        return sae
    dropped = {"device", "metadata", "sae_lens_training_version", "sae_lens_version"}
    return {name: value for name, value in sae.items() if name not in dropped | MAY_DIFFER}
