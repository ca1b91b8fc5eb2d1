"""Several trainers on the same batches, a step of each at a time, and going on with all of them.

What all need to go on from is saved together, in a folder of its own: the shared place in the data
once, and the state of every trainer. The trainers may stand one step apart, where the step of one
was broken off after others had made it; those behind then make it first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.errors import add_note
from sae_lens.training.checkpoints import atomic_folder
from sae_lens.training.interruptions import IterationGuard, stopping_on_signals
from sae_lens.training.random_states import random_state, set_random_state
from sae_lens.training.resume_files import ResumableCheckpoint, write_resume_files
from sae_lens.training.resumption import restore_part
from sae_lens.training.run_folder import keep_only_last, mark_latest
from sae_lens.training.trainer_checkpoints import save_after_error

logger = logging.getLogger(__name__)

TOGETHER = "together"
# The newest, and the one before in case that is damaged.
_N_KEPT = 2
_DONE = object()


class SideBySide:
    """The trainers of one run.

    Args:
        trainers: by name; their data are views of one store.
        random_states: where the random generators of each stand at its start.
        store: that store, with `save`, `load` and `n_batches_drawn`.
        folder: where to save what all go on from.
        config: the run's config as plain values.
        other_state: what else is to be saved: an object with a `state_dict`, or None.
    """

    def __init__(
        self,
        trainers: Mapping[str, Any],
        random_states: Mapping[str, dict[str, Any]],
        store: Any,
        folder: Path,
        config: Mapping[str, Any],
        other_state: Any = None,
    ) -> None:
        self.trainers = dict(trainers)
        self._random_states = dict(random_states)
        self._store = store
        self._folder = folder
        self._config = config
        self._other = other_state

    def train(self, bar: tqdm) -> None:
        """Train them all to the end.

        A signal that arrives in the middle takes effect when every SAE has made the step, or while
        activations are gathered. Whatever ends the training before, each has a checkpoint then, and
        all have one to go on from.
        """
        guard = IterationGuard()
        steps = {name: trainer.steps() for name, trainer in self.trainers.items()}
        bar.update(min(trainer.n_training_tokens for trainer in self.trainers.values()))
        with stopping_on_signals(guard):
            try:
                while steps:
                    n_due = self._n_checkpoints_due()
                    with guard.iteration():
                        for name in self._behind(steps):
                            with self._random_numbers_of(name):
                                if next(steps[name], _DONE) is _DONE:
                                    del steps[name]
                    bar.update(next(iter(self.trainers.values())).cfg.train_batch_size_tokens)
                    if guard.take_checkpoint_request():
                        self._save_each()
                        self.save()
                    elif n_due > self._n_checkpoints_due() and steps:
                        self.save()
                self.save("final_")
            except (Exception, KeyboardInterrupt) as error:
                self._save_after(error)
                raise
            finally:
                for remaining in steps.values():
                    remaining.close()

    def save(self, prefix: str = "") -> None:
        """Write what all go on from, if every trainer stands at the end of a step."""
        states = {name: trainer.resume_state() for name, trainer in self.trainers.items()}
        if any(state is None for state in states.values()):
            return
        n_tokens = min(trainer.n_training_tokens for trainer in self.trainers.values())
        folder = self._folder / f"{prefix}{n_tokens}"
        state = {
            "trainers": {
                name: {key: part for key, part in (state or {}).items() if key != "random"}
                for name, state in states.items()
            },
            "random": self._random_states,
            "n_batches_taken": {
                name: trainer.activations_store.n_batches_taken
                for name, trainer in self.trainers.items()
            },
            "other": {} if self._other is None else self._other.state_dict(),
        }
        try:
            with atomic_folder(folder) as temporary:
                self._store.save(temporary / ACTIVATIONS_STORE_STATE_FILENAME)
                write_resume_files(temporary, state, self._config, n_tokens)
        except OSError as error:
            logger.error("%s was not saved, so nothing can go on from it: %s", folder, error)
            return
        mark_latest(folder)
        keep_only_last(self._folder, _N_KEPT)

    def restore(self, checkpoint: ResumableCheckpoint) -> None:
        """Bring new trainers, made from the same config, to where `save` was called.

        Raises:
            ValueError: when the SAEs or the data are others than those of the checkpoint.
        """
        self._store.load(str(checkpoint.folder / ACTIVATIONS_STORE_STATE_FILENAME))
        for name, trainer in self.trainers.items():
            trainer.activations_store.n_batches_taken = checkpoint.state["n_batches_taken"][name]
            restore_part(trainer, checkpoint.state["trainers"][name], checkpoint.folder)
            self._random_states[name] = checkpoint.state["random"][name]

    def _behind(self, steps: Mapping[str, Any]) -> list[str]:
        """Those that have made the fewest steps: all, unless a step was broken off."""
        tokens = {name: self.trainers[name].n_training_tokens for name in steps}
        return [name for name in steps if tokens[name] == min(tokens.values())]

    def _n_checkpoints_due(self) -> int:
        return sum(len(trainer.checkpoint_thresholds) for trainer in self.trainers.values())

    def _save_each(self) -> None:
        for trainer in self.trainers.values():
            if not trainer.weights_are_final:
                name = str(trainer.n_training_tokens)
                trainer.save_checkpoint(trainer=trainer, checkpoint_name=name)

    def _save_after(self, error: BaseException) -> None:
        for trainer in self.trainers.values():
            save_after_error(trainer, error, trainer.save_checkpoint)
        self.save()
        if (self._folder / "latest").exists():
            add_note(error, f"The run can go on from {self._folder.parent}.")

    @contextmanager
    def _random_numbers_of(self, name: str) -> Iterator[None]:
        """Inside, random numbers are those of the run that would train this SAE alone."""
        set_random_state(self._random_states[name])
        try:
            yield
        finally:
            self._random_states[name] = random_state()
