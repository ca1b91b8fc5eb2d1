"""Everything of a training run that changes, as one state, and back.

A run that is restored goes on bit for bit as the saved one would have. The place in the data is in
the checkpoint's own file, which the activations store writes and reads; all else is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.saes.files import jsonable
from sae_lens.training.random_states import random_state, set_random_state
from sae_lens.training.resume_files import ResumableCheckpoint


def capture(trainer: Any) -> dict[str, Any]:
    """The state of a trainer between two steps. Tensors are not copied."""
    evaluator = getattr(trainer.evaluator, "state_dict", None)
    choice = getattr(trainer.sae, "_sparse_choice", None)
    return {
        "sae": sae_tensors(trainer.sae),
        "trainer": trainer.state_dict(),
        "gradients": _gradients_that_add_up(trainer),
        # Which form a step takes follows from what earlier steps measured.
        "sparse_choice": {} if choice is None else dict(vars(choice)),
        # For how many active entries there is room follows from what earlier steps counted.
        "entry_capacities": [
            [matrix, capacity.state_dict()]
            for matrix, capacity in getattr(trainer.sae, "_entry_capacities", {}).items()
        ],
        "evaluator": {} if evaluator is None else evaluator(),
        "source": trainer.source.state_dict(),
        "sae_config": jsonable(trainer.sae.cfg.to_dict()),
        "random": random_state(),
        "lengths": _lengths(trainer.cfg),
    }


def restore(trainer: Any, checkpoint: ResumableCheckpoint) -> None:
    """Bring a new trainer, made from the same config, to where a checkpoint was taken.

    Raises:
        ValueError: when the SAE or the data are others than those of the checkpoint.
    """
    store = trainer.activations_store
    if hasattr(store, "load"):
        store.load(str(checkpoint.folder / ACTIVATIONS_STORE_STATE_FILENAME))
    restore_part(trainer, checkpoint.state, checkpoint.folder)
    set_random_state(checkpoint.state["random"])


def restore_part(trainer: Any, state: Mapping[str, Any], folder: Path) -> None:
    """The part of `restore` without the place in the data and the random generators."""
    restore_weights(trainer, state, folder)
    # A final checkpoint's store has none any more, its weights being rid of it.
    trainer.source.load_state_dict(state.get("source", state))
    if state["evaluator"] and hasattr(trainer.evaluator, "load_state_dict"):
        trainer.evaluator.load_state_dict(state["evaluator"], trainer.activations_store)


def restore_weights(trainer: Any, state: Mapping[str, Any], folder: Path) -> None:
    """The part of `restore` about SAE, optimiser, schedules and counters; the data stay."""
    load_sae_tensors(trainer.sae, state["sae"], folder)
    trainer.load_state_dict(state["trainer"])
    gradients = state.get("gradients", {})
    for name, parameter in trainer.sae.named_parameters():
        gradient = gradients.get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
    choice = getattr(trainer.sae, "_sparse_choice", None)
    for name, value in state["sparse_choice"].items():
        if hasattr(choice, name):
            setattr(choice, name, value)
    capacities = getattr(trainer.sae, "_entry_capacities", {})
    capacities.clear()
    for matrix, capacity in state.get("entry_capacities", []):  # older checkpoints know none
        capacities[matrix].load_state_dict(capacity)
    if state["lengths"] != _lengths(trainer.cfg):
        _change_length(trainer, state["lengths"])


def _gradients_that_add_up(trainer: Any) -> dict[str, Tensor]:
    """Those of the steps since the last update, where an update takes several."""
    if trainer.features.completes_update(trainer.n_training_steps - 1):
        return {}
    return {
        name: parameter.grad
        for name, parameter in trainer.sae.named_parameters()
        if parameter.grad is not None
    }


def sae_tensors(sae: torch.nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers as they are in training, whatever files make of them."""
    return {name: t.detach() for name, t in [*sae.named_parameters(), *sae.named_buffers()]}


@torch.no_grad()
def load_sae_tensors(sae: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Set the values of all parameters and buffers, in place."""
    own = sae_tensors(sae)
    shapes = {name: tuple(t.shape) for name, t in own.items()}
    saved = {name: tuple(t.shape) for name, t in tensors.items()}
    if shapes != saved:
        raise ValueError(
            f"The SAE in {source} has the tensors {saved}, the one of this run {shapes}. Pass the "
            "same SAE and config as when the checkpoint was made."
        )
    for name, tensor in own.items():
        if tensor.dtype != tensors[name].dtype:
            raise ValueError(
                f"{name} in {source} is {tensors[name].dtype}, in this run {tensor.dtype}; set "
                "dtype as when the checkpoint was made."
            )
        tensor.copy_(tensors[name])


def _lengths(cfg: Any) -> dict[str, int]:
    main = getattr(cfg, "training_tokens", cfg.total_training_tokens)
    return {
        "main": main,
        "total": cfg.total_training_tokens,
        "n_checkpoints": cfg.n_checkpoints,
    }


def _change_length(trainer: Any, saved: Mapping[str, int]) -> None:
    """Go on with another length: schedules and checkpoints as if it had been so from the start."""
    cfg = trainer.cfg
    now = _lengths(cfg)
    if trainer.started_fine_tuning and now["main"] != saved["main"]:
        raise ValueError(
            f"training_tokens is {now['main']}, in the checkpoint {saved['main']}, but fine-tuning "
            "has begun there, so the length of the phase before it cannot change any more."
        )
    if now["total"] < trainer.n_training_tokens:
        raise ValueError(
            f"The config asks for {now['total']} tokens, but the checkpoint has been trained on "
            f"{trainer.n_training_tokens} already."
        )
    trainer.checkpoint_thresholds = [
        threshold
        for threshold in trainer.all_checkpoint_thresholds()
        if threshold >= trainer.n_training_tokens
    ]
    if now["total"] != saved["total"]:
        trainer.remake_lr_scheduler()
