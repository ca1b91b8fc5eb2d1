"""When a trainer writes checkpoints, what state is in them, and how it goes on from one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens.saes.training import TrainingSAE
from sae_lens.training.active_features import ActiveFeatures, checkpoint_tokens
from sae_lens.training.checkpoint_policy import CheckpointPolicy
from sae_lens.training.checkpoints import checkpoint_thresholds
from sae_lens.training.finetuning import leave_only_trainable
from sae_lens.training.interruptions import IterationGuard, stopping_on_signals
from sae_lens.training.nonfinite import NonFiniteLossError, NonFiniteWatch
from sae_lens.training.optim import L1Scheduler
from sae_lens.training.resumption import capture, restore
from sae_lens.training.rewinding import rewind
from sae_lens.training.run_folder import BEST_NAME, open_checkpoint
from sae_lens.training.same_results import refuse_differences, refuse_other_sae
from sae_lens.training.sources import ActivationSource
from sae_lens.training.step_undo import StepUndo
from sae_lens.training.trainer_checkpoints import save_after_error
from sae_lens.training.trainer_parts import remade_lr_scheduler

logger = logging.getLogger(__name__)

_COUNTERS = (
    "n_training_steps", "n_training_tokens", "started_fine_tuning", "finetuning",
    "weights_are_final",
)  # fmt: skip
# Whether a step that was put back was prepared, and whether an evaluation was broken off.
_MARKS = ("_is_prepared", "_owes_evaluation")
_STATEFUL_PARTS = (
    "statistics",
    "optimizer",
    "lr_scheduler",
    "scaler",
    "logger",
    "features",
    "_nonfinite",
)


class TrainerState:
    """The part of a trainer that saves it and brings it back."""

    sae: TrainingSAE
    cfg: Any
    activations_store: Any
    save_checkpoint: Any
    features: ActiveFeatures
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    coefficient_schedulers: dict[str, L1Scheduler]
    n_training_steps: int
    n_training_tokens: int
    checkpoint_thresholds: list[int]
    rewinds: dict[str, Any]
    finetuning: bool
    weights_are_final: bool
    last_error: BaseException | None = None
    source: ActivationSource
    _is_prepared: bool
    _update_has_begun: bool
    _owes_evaluation: bool
    _begin_finetuning_if_needed: Callable[[], None]
    _run_and_log_evals: Callable[[], None]
    _finetuning_method: str | None
    _on_nan: str
    _policy: CheckpointPolicy
    _guard: IterationGuard
    _nonfinite: NonFiniteWatch
    _state_before_finishing: dict[str, Any] | None

    def all_checkpoint_thresholds(self) -> list[int]:
        """Numbers of tokens after which a whole run of the config's length writes checkpoints."""
        cfg = self.cfg
        by_logarithm = checkpoint_tokens(
            self.features.features,
            cfg.total_training_tokens,
            cfg.train_batch_size_tokens,
            cfg.n_checkpoints,
        )
        if by_logarithm is not None:
            return by_logarithm
        return checkpoint_thresholds(cfg.total_training_tokens, cfg.n_checkpoints)

    def _checkpoint_if_needed(self) -> None:
        is_due = self._guard.take_checkpoint_request()
        # Planned ones wait until gradients that add up have moved the weights.
        if self.features.completes_update(self.n_training_steps - 1):
            is_due |= self._policy.is_time()
            due = self.checkpoint_thresholds
            if due and self.n_training_tokens > due[0]:
                due.pop(0)
                is_due = True
        if is_due:
            self._save_on_the_way(str(self.n_training_tokens))
        if self._policy.take_best():
            self._save_on_the_way(BEST_NAME)

    def _save_on_the_way(self, name: str) -> None:
        """Save a checkpoint; a full disk, say, does not end a run that could do without it."""
        if self._on_nan == "rewind":
            try:
                self._nonfinite.check()
            except NonFiniteLossError as error:
                return self._rewind(error)
        self._nonfinite.check()
        self._guard.is_in_step = True
        try:
            self.save_checkpoint(trainer=self, checkpoint_name=name)
        except OSError as error:
            logger.error("Checkpoint %s was not saved, and training goes on: %s", name, error)
        self._policy.start_clock()
        return None

    def _rewind(self, error: NonFiniteLossError) -> None:
        self._nonfinite.forget()
        rewind(self, error)
        self.source.drop_what_was_put_back()

    def resume_state(self) -> dict[str, Any] | None:
        """What a checkpoint needs for the run to go on from it; None in the middle of a step."""
        if self._state_before_finishing is not None:
            return self._state_before_finishing
        return self._resume_state() if self._guard.is_in_step else None

    def _resume_state(self, copies_weights: bool = False) -> dict[str, Any] | None:
        try:
            self.source.require_resumable()
        except ValueError:
            return None
        state = capture(self)
        if copies_weights:
            state["sae"] = {name: tensor.clone() for name, tensor in state["sae"].items()}
        return state

    def warn_if_not_resumable(self) -> None:
        """Say so at the start when no training will be able to go on from the checkpoints."""
        try:
            self.source.require_resumable()
        except ValueError as error:
            logger.warning("%s", error)

    def resume(self, checkpoint: str | Path | None = None) -> None:
        """Go on from a checkpoint of a trainer that was made in the same way.

        Args:
            checkpoint: its folder, or that of its run: then the newest sound one is taken. By
                default the config's `checkpoint_path`.

        Raises:
            FileNotFoundError: when there is nothing to go on from.
            DamagedCheckpointError: when a file of it is missing or has changed.
            ValueError: when it is of another SAE or config, or of data that are not the same or
                cannot be gone on with; the message says what to pass.
        """
        self.source.require_resumable()
        if checkpoint is None:
            checkpoint = self.cfg.checkpoint_path
        if checkpoint is None:
            raise ValueError("Give a checkpoint: the config's checkpoint_path is None.")
        found = open_checkpoint(checkpoint)
        refuse_differences(found.config, self.cfg, found.folder)
        refuse_other_sae(found.state.get("sae_config"), self.sae.cfg, found.folder)
        restore(self, found)

    def remake_lr_scheduler(self) -> None:
        """Make the schedule of the learning rate anew for the config's length."""
        self.lr_scheduler = remade_lr_scheduler(self.optimizer, self.cfg, self.n_training_steps)

    @property
    def is_whole(self) -> bool:
        """Whether everything stands at the end of the same step, so that going on is possible."""
        return self._guard.is_in_step

    @contextmanager
    def _saving_after_errors(self) -> Iterator[None]:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            save_after_error(self, error, self.save_checkpoint)
            raise

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """Where no runner does it, and only if there is somewhere to save to."""
        if self.cfg.checkpoint_path is None:
            yield
            return
        with stopping_on_signals(self, only_unhandled=True):
            yield

    @contextmanager
    def _put_back_unless_used(self, acts: Tensor) -> Iterator[None]:
        """Around a training step: one that fails before the weights change is not begun."""
        undo, self._update_has_begun = StepUndo(self), False
        try:
            yield
        except BaseException:
            if not self._update_has_begun:
                self.source.put_back(acts)
                undo()
                self._guard.is_whole_again()
            raise

    @contextmanager
    def _counting_the_step(self) -> Iterator[None]:
        """Around what follows a step, which counts though this fails; going on begins with it."""
        try:
            yield
        except BaseException:
            self._owes_evaluation = True
            self._count_step()
            self._guard.is_whole_again()
            raise
        self._count_step()

    def _count_step(self) -> None:
        self.n_training_steps += 1
        self._begin_finetuning_if_needed()

    def _make_up_for_evaluation(self) -> None:
        """Evaluate after the last step if that was broken off."""
        if not self._owes_evaluation:
            return
        with self._guard.iteration():
            self.n_training_steps -= 1
            with self._counting_the_step():
                self._run_and_log_evals()
            self._owes_evaluation = False
            self._checkpoint_if_needed()

    def state_dict(self) -> dict[str, Any]:
        """What of the trainer changes during training, besides the SAE and the source."""
        return {
            **{name: getattr(self, name) for name in (*_COUNTERS, *_MARKS)},
            "rewinds": dict(self.rewinds),
            "best": self._policy.best_value,
            "checkpoint_thresholds": list(self.checkpoint_thresholds),
            **{name: getattr(self, name).state_dict() for name in _STATEFUL_PARTS},
            "coefficient_schedulers": {
                name: scheduler.state_dict()
                for name, scheduler in self.coefficient_schedulers.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; the SAE and the source are restored beside it."""
        for name in _COUNTERS:
            setattr(self, name, state[name])
        for name in _MARKS:  # older checkpoints know none
            setattr(self, name, state.get(name, False))
        self.rewinds = dict(state.get("rewinds", {}))
        self._policy.best_value = state.get("best")
        self.checkpoint_thresholds = list(state["checkpoint_thresholds"])
        for name in _STATEFUL_PARTS:
            if name in state:  # older checkpoints know no features
                getattr(self, name).load_state_dict(state[name])
        for name, scheduler in self.coefficient_schedulers.items():
            scheduler.load_state_dict(state["coefficient_schedulers"][name])
        if self.finetuning and self._finetuning_method is not None:
            leave_only_trainable(self.sae, self._finetuning_method)
