"""Writing and logging the checkpoints of a trainer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_lens.errors import add_note
from sae_lens.training.checkpoints import write_checkpoint
from sae_lens.training.folding import saved_form
from sae_lens.training.interruptions import InterruptedException
from sae_lens.training.loggers import LoggedArtifact
from sae_lens.training.nonfinite import NonFiniteLossError
from sae_lens.training.run_folder import BEST_NAME, keep_only_last, latest_name, mark_latest

logger = logging.getLogger(__name__)


def logging_config(cfg: Any) -> Any:
    """The part of a run's config about logging: the flat config itself, or its `logger`."""
    return cfg if hasattr(cfg, "wandb_project") else cfg.logger


def save_trainer(trainer: Any, folder: str | Path, wandb_aliases: list[str] | None = None) -> None:
    """Write a checkpoint of `trainer` to `folder`, and log its files as the config asks for.

    The trainer is not changed: what is written are its weights in their final form, with unit
    decoder rows where the config asks for them and what was done to activations folded in.

    Between two steps the checkpoint is one from which the run can go on; `latest` beside it then
    names it, and checkpoints along the way that the config does not want to keep are removed.
    """
    folder = Path(folder)
    state = trainer.resume_state() if hasattr(trainer, "resume_state") else None
    log_cfg = logging_config(trainer.cfg)
    store = trainer.activations_store
    sae = trainer.sae
    if not trainer.weights_are_final:
        averages = trainer.features.averager.averages
        sae = saved_form(sae, trainer.source, trainer.normalizes_decoder, averages)
    files = write_checkpoint(
        folder,
        sae,
        trainer.log_feature_sparsity,
        trainer.cfg.to_dict(),
        store=store if hasattr(store, "save") else None,
        optimizer=trainer.optimizer if log_cfg.log_optimizer_state_to_wandb else None,
        resume_state=state if trainer.source.is_alone else None,
        n_training_tokens=trainer.n_training_tokens,
    )
    if state is not None and trainer.source.is_alone and folder.name != BEST_NAME:
        mark_latest(folder)
    keep = getattr(trainer.cfg, "keep_last", None)
    if keep is not None:
        keep_only_last(folder.parent, keep)
    logger.info("Saved a checkpoint to %s.", folder)
    if trainer.logger.is_active:
        for artifact in _artifacts(trainer, files, log_cfg, wandb_aliases):
            trainer.logger.log_artifact(artifact)


def save_after_error(trainer: Any, error: BaseException, save: Callable[..., None]) -> None:
    """Save the last whole step before `error` leaves the run, and note in it how to go on.

    Where training was broken off in the middle of a step that cannot be put back, nothing is
    written, and the checkpoint before stays the latest. An error of one trainer is treated once.

    Args:
        trainer: the trainer whose training ends so.
        error: what it ends with.
        save: its `save_checkpoint`.
    """
    if trainer.weights_are_final or trainer.last_error is error:
        return  # the final checkpoint is complete, or this one is
    trainer.last_error = error
    name, said = str(trainer.n_training_tokens), str(error) or "Interrupted"
    # Weights are worth keeping also where a loss was found not to be finite only later.
    if trainer.is_whole or isinstance(error, NonFiniteLossError):
        logger.warning("%s; saving a checkpoint before stopping.", said)
        try:
            save(trainer=trainer, checkpoint_name=name)
        except InterruptedException:
            raise  # by force
        except Exception as problem:  # what ended the training matters more
            logger.error("Checkpoint %s was not saved: %r", name, problem)
        else:
            logger.info("The checkpoint is saved.")
    else:
        logger.warning("%s, in the middle of a step; that is not saved.", said)
    if trainer.cfg.checkpoint_path is not None:
        run_folder = Path(trainer.cfg.checkpoint_path)
        latest = latest_name(run_folder)
        if latest is not None:
            add_note(error, f"The run can go on from the checkpoint {run_folder / latest}.")


def save_without_runner(
    trainer: Any, checkpoint_name: str, wandb_aliases: list[str] | None = None
) -> None:
    """A checkpoint of a trainer that has no runner: to the config's folder, if it names one.

    A `save_checkpoint_fn` is then called with the folder (or None) if it takes `checkpoint_path`,
    else like that of a runner.
    """
    cfg = trainer.cfg
    folder = None
    is_wanted = cfg.save_final_checkpoint or not checkpoint_name.startswith("final_")
    if cfg.checkpoint_path is not None and is_wanted:
        folder = Path(cfg.checkpoint_path) / checkpoint_name
        save_trainer(trainer, folder, wandb_aliases)
    also = trainer.save_checkpoint_fn
    if also is None:
        return
    if "checkpoint_path" in inspect.signature(also).parameters:
        also(checkpoint_path=folder)
    else:
        also(trainer=trainer, checkpoint_name=checkpoint_name, wandb_aliases=wandb_aliases)


def _artifacts(
    trainer: Any, files: Mapping[str, Path], log_cfg: Any, aliases: list[str] | None
) -> list[LoggedArtifact]:
    name = trainer.sae.get_name().replace("/", "__")
    wanted: list[tuple[str, str, list[str]]] = []
    if log_cfg.log_weights_to_wandb:
        wanted.append(("model", name, ["weights", "config"]))
        wanted.append(("log_feature_sparsity", f"{name}_log_feature_sparsity", ["sparsity"]))
    if log_cfg.log_activations_store_to_wandb:
        wanted.append(("activations_store", f"{name}_activations_store", ["store"]))
    if log_cfg.log_optimizer_state_to_wandb:
        wanted.append(("optimizer_state", f"{name}_optimizer_state", ["optimizer"]))
    return [
        LoggedArtifact(
            name=artifact_name,
            type=kind,
            files=[files[part] for part in parts],
            metadata=trainer.cfg.to_dict() if kind == "model" else {},
            aliases=aliases,
        )
        for kind, artifact_name, parts in wanted
        if all(part in files and files[part].exists() for part in parts)
    ]
