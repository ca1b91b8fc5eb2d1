"""Putting back a training step that was broken off before it changed the weights.

The batch goes back to the source, and torch's random generators, counters and buffers to where they
were, so that the step is made anew, with the same result, when training goes on: in this process,
or, from a checkpoint, in another. (A step draws from torch's generators alone; to look at numpy's
would take longer than a small step.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StepUndo:
    """What a step that begins now can be put back to.

    Args:
        trainer: between two steps, or with a batch just drawn.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._n_training_tokens = trainer.n_training_tokens
        self._torch = torch.get_rng_state()
        self._cuda: list[Tensor] = []
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._cuda = torch.cuda.get_rng_state_all()
        self._buffers = [(buffer, buffer.clone()) for buffer in trainer.sae.buffers()]
        choice = getattr(trainer.sae, "_sparse_choice", None)
        self._choice = None if choice is None else dict(vars(choice))
        self._capacities = {
            matrix: dict(vars(capacity))
            for matrix, capacity in getattr(trainer.sae, "_entry_capacities", {}).items()
        }

    @torch.no_grad()
    def __call__(self) -> None:
        """Put it back; the batch is the caller's to give back."""
        trainer = self._trainer
        trainer.n_training_tokens = self._n_training_tokens
        if trainer.features.completes_update(trainer.n_training_steps - 1):
            trainer.optimizer.zero_grad()
        for buffer, before in self._buffers:
            buffer.copy_(before)
        if self._choice is not None:
            vars(trainer.sae._sparse_choice).update(self._choice)
        capacities = getattr(trainer.sae, "_entry_capacities", {})
        capacities.clear()
        for matrix, before in self._capacities.items():
            vars(capacities[matrix]).update(before)
        torch.set_rng_state(self._torch)
        for device, state in enumerate(self._cuda):
            torch.cuda.set_rng_state(state, device)
