"""`SAETrainer`: from batches of activations to a trained SAE.

`fit` is the loop and `_train_step` the mathematics of one step. What is logged and evaluated is in
`trainer_reports`, checkpoints and resumption in `trainer_state`, what moves the weights in
`trainer_updates`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens._version import __version__
from sae_lens.kernels.determinism import check_determinism
from sae_lens.saes.training import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.training_step import reported_features
from sae_lens.training.active_features import ActiveFeatures
from sae_lens.training.checkpoint_policy import CheckpointPolicy
from sae_lens.training.checkpoints import ensure_writable
from sae_lens.training.dead_feature_bound import DeadFeatureBound
from sae_lens.training.features import TrainingFeatures
from sae_lens.training.finetuning import (
    FINETUNING_PARAMETERS,
    add_scaling_factor,
    freeze_scaling_factor,
    leave_only_trainable,
)
from sae_lens.training.folding import record_filter
from sae_lens.training.interruptions import IterationGuard
from sae_lens.training.log_values import (
    _log_feature_sparsity,
    _unwrap_item,
)
from sae_lens.training.nonfinite import NonFiniteLossError, NonFiniteWatch
from sae_lens.training.optim import (
    L1Scheduler,
    apply_group_factors,
    step_schedule,
)
from sae_lens.training.statistics import FiringStatistics
from sae_lens.training.trainer_checkpoints import save_without_runner
from sae_lens.training.trainer_parts import (
    make_coefficient_schedulers,
    make_lr_scheduler,
    may_take_step_input,
    trainer_parts,
)
from sae_lens.training.trainer_reports import TrainerReports
from sae_lens.training.trainer_state import TrainerState
from sae_lens.training.trainer_updates import TrainerUpdates

logger = logging.getLogger(__name__)

# After this many steps at the latest the device is asked whether the loss is still finite.
_STEPS_BETWEEN_CHECKS = 100


@dataclass
class TrainSAEOutput:
    """A trained SAE, where its checkpoint is, and its log10 firing densities."""

    sae: TrainingSAE
    checkpoint_path: str
    log_feature_sparsities: Tensor


class SaveCheckpointFn(Protocol):
    """Writes a checkpoint of a trainer under a name."""

    def __call__(
        self, trainer: SAETrainer, checkpoint_name: str, wandb_aliases: list[str] | None = None
    ) -> None:
        """Write it; `wandb_aliases` are further names for the logged artifact."""
        ...


class SAETrainer(TrainerReports, TrainerState, TrainerUpdates):
    """Trains an SAE: `fit()` returns it.

    A trainer is made in one of two ways:

    - `SAETrainer(model, sae, activation_store, save_checkpoint_fn, cfg)` for a run on a language
      model, with a `LanguageModelSAERunnerConfig`;
    - `SAETrainer(cfg, sae, data_provider, evaluator=None, save_checkpoint_fn=None)` for any
      iterator of `[batch, d_in]` activations, with a `SAETrainerConfig`.

    Both take `evaluator=` and `logger=` by keyword. Without them, evaluations run the SAE in its
    model (first form) or not at all (second form), and the config says what is logged where.

    Attributes:
        n_training_steps: steps taken.
        n_training_tokens: activations trained on, counted in whole batches.
        checkpoint_thresholds: numbers of tokens after which checkpoints are still due.
        statistics: firing counts and silence of the features.
        optimizer: Adam over the SAE's parameters.
        lr_scheduler: the schedule of the learning rate.
        l1_scheduler: the schedule of the sparsity coefficient.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        parts = trainer_parts(*args, **kwargs)
        self.model, self.sae, self.cfg = parts.model, parts.sae, parts.cfg
        self.activations_store = parts.data
        self.source = parts.source
        self.evaluator = parts.evaluator
        if parts.logger is not None:
            self.logger = parts.logger
        self.save_checkpoint_fn = parts.save_checkpoint_fn
        self.save_checkpoint: Any = self.save_checkpoint_fn
        if not parts.has_runner:
            _refuse_initial_weights(self.cfg)
            self.save_checkpoint = save_without_runner
            if self.cfg.checkpoint_path is not None:
                ensure_writable(self.cfg.checkpoint_path)
                self.warn_if_not_resumable()

        for note in check_determinism(self.sae.device):
            logger.warning("%s", note)
        _update_sae_lens_training_version(self.sae)
        if getattr(self.cfg, "sparse_kernels", "auto") != "auto":
            self.sae.sparse_kernels = self.cfg.sparse_kernels
        self._finetuning_method = getattr(self.cfg, "finetuning_method", None)
        if self._finetuning_method is not None:
            add_scaling_factor(self.sae)
        freeze_scaling_factor(self.sae)

        self.n_training_steps = 0
        self.n_training_tokens = 0
        self.started_fine_tuning = False
        self.finetuning = False
        self.weights_are_final = False
        self._is_prepared = self._update_has_begun = self._owes_evaluation = False
        self.features = ActiveFeatures(
            TrainingFeatures.of(getattr(self.cfg, "features", None)),
            self.sae,
            self.cfg.total_training_steps,
        )
        self.checkpoint_thresholds = self.all_checkpoint_thresholds()
        device = self.sae.device
        counts_tokens = self.features.features.dead_after_tokens is not None
        self.statistics = FiringStatistics(self.sae.cfg.d_sae, device, counts_tokens)
        self._on_nan = getattr(self.cfg, "on_nan", "stop")
        spike_factor = getattr(self.cfg, "loss_spike_factor", None)
        self._nonfinite = NonFiniteWatch(device, self._on_nan == "skip_batch", spike_factor)
        self.rewinds: dict[str, Any] = {}
        self._guard = IterationGuard()
        self.request_stop = self._guard.request_stop
        self.request_checkpoint = self._guard.request_checkpoint
        self._policy = CheckpointPolicy.from_config(self.cfg)
        self._state_before_finishing: dict[str, Any] | None = None

        self._dead_feature_bound = DeadFeatureBound()
        self.optimizer = self._make_optimizer()
        self.lr_scheduler = make_lr_scheduler(self.optimizer, self.cfg)
        apply_group_factors(self.optimizer)
        self.coefficient_schedulers = make_coefficient_schedulers(self.sae, self.cfg)
        for scheduler in self.coefficient_schedulers.values():
            self.features.controller.wait_until(scheduler.l1_warmup_steps)
        no_coefficient = L1Scheduler(0, self.cfg.total_training_steps, 0.0)
        self.l1_scheduler = next(iter(self.coefficient_schedulers.values()), no_coefficient)
        self._l1_coefficient_used: float | None = None
        # Autocast is to bfloat16, whose range is that of float32: there is nothing to scale.
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)
        self.autocast_if_enabled: AbstractContextManager[Any] = (
            torch.autocast(device.type, dtype=torch.bfloat16)
            if self.cfg.autocast
            else nullcontext()
        )

    # -- the algorithm ----------------------------------------------------------------------------

    def fit(self) -> TrainingSAE:
        """Train until the config's number of tokens is reached, save, and return the SAE.

        A trainer that was restored from a checkpoint trains the rest.

        Whatever is raised in between, there is a checkpoint of the last whole step before.

        Raises:
            NonFiniteLossError: when the loss stops being finite (unless `on_nan` of the config says
                otherwise).
            DataSourceError: when no more data can be read.
        """
        with self._saving_after_errors(), self._stopping_on_signals():
            for _ in self.steps():
                pass
        return self.sae

    def steps(self) -> Iterator[None]:
        """The work of `fit`, a training step at a time: for several trainers side by side."""
        with self._guard.iteration():
            self.source.prepare()
            record_filter(self.sae.cfg, self.source)
        self._policy.start_clock()
        with self._progress_bar() as pbar:
            self._make_up_for_evaluation()
            while self.n_training_tokens < self.cfg.total_training_tokens:
                with self._guard.iteration():
                    acts = self._next_batch()
                    if acts is None:
                        break
                    try:
                        with self._put_back_unless_used(acts):
                            self.n_training_tokens += self.cfg.train_batch_size_tokens
                            step_output = self._train_step(sae=self.sae, sae_in=acts)
                        if self.logger.is_active:
                            self._log_train_step(step_output)
                    except NonFiniteLossError as error:
                        if self._on_nan != "rewind":
                            raise
                        self._rewind(error)
                        continue
                    with self._counting_the_step():
                        self._run_and_log_evals()
                    self._update_pbar(step_output, pbar)
                    self._checkpoint_if_needed()
                yield
            self._nonfinite.check()
        with self._guard.iteration():
            # The final checkpoint, too, can be gone on from, for a longer training.
            # Weights that stay as they are are not copied: those of a large SAE may not fit twice.
            changes = self._finishing_changes_weights
            state = self._resume_state(copies_weights=changes)
            # An update moves moments and gradients as well.
            self._state_before_finishing = deepcopy(state) if self._has_gradients_left else state
            self._update_with_what_is_left()
            self._finish_weights()
            self.save_checkpoint(
                trainer=self,
                checkpoint_name=f"final_{self.n_training_tokens}",
                wandb_aliases=["final_model"],
            )

    def _train_step(self, sae: TrainingSAE, sae_in: Float[Tensor, "batch d_in"]) -> TrainStepOutput:
        """One step: forward, statistics, backward, clip, update, schedules.

        Raises:
            NonFiniteLossError: when loss or gradient are not finite (away from the CPU up to a
                hundred steps later); the weights are then those before the bad step.
        """
        sae.train()
        self._prepare_step(sae)
        with self.autocast_if_enabled:
            output = self._forward(sae, sae_in)
        # What is added to gradients that are there already cannot be taken out again.
        self._update_has_begun = not self.features.completes_update(self.n_training_steps - 1)
        (output.loss / self.features.features.gradient_accumulation_steps).backward()
        if not self.features.completes_update(self.n_training_steps):
            self._update_has_begun, self._is_prepared = True, False
            self.statistics.update(reported_features(output))
            self._advance_schedules()
            return output
        norm = self._norm_of_gradients(sae)
        skip = self._nonfinite.observe(output.loss, norm, sae_in, self.n_training_steps)
        is_alone = self.features.features.gradient_accumulation_steps == 1
        if output.is_incomplete is not None and is_alone:
            skip = skip | output.is_incomplete
        self._update_has_begun, self._is_prepared = True, False
        if skip.device.type == "cpu" and skip:
            logger.warning("The batch of step %d is skipped: no update.", self.n_training_steps)
            self.optimizer.zero_grad()
            self.optimizer.step()  # without gradients it changes nothing, but schedules expect it
        else:
            self.statistics.update(reported_features(output))
            self._update(sae, norm, skip)
            self.features.after_step(
                sae, self.optimizer, sae_in, output, self.n_training_steps, self.dead_neurons
            )
        self.optimizer.zero_grad()
        self._advance_schedules()
        if (self.n_training_steps + 1) % _STEPS_BETWEEN_CHECKS == 0:
            self._nonfinite.check()
        return output

    def _prepare_step(self, sae: TrainingSAE) -> None:
        """What comes before the batch is looked at; once, though the step be begun again."""
        if not self._is_prepared:
            if self.normalizes_decoder:
                sae.set_decoder_norm_to_unit_norm()
            if (self.n_training_steps + 1) % self.cfg.feature_sampling_window == 0:
                if self.logger.is_active:
                    self.logger.log(self._build_sparsity_log_dict(), step=self.n_training_steps)
                self._reset_running_sparsity_stats()
        self._is_prepared = True
        self.features.before_step(sae, self.n_training_steps)

    def _advance_schedules(self) -> None:
        step_schedule(self.lr_scheduler)
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()

    def _forward(self, sae: TrainingSAE, sae_in: Tensor) -> TrainStepOutput:
        self._l1_coefficient_used = self.current_l1_coefficient
        scale = self.features.coefficient_scale
        most_dead = self._most_dead()
        takes_step_input = sae.form == "v6" or self.features.terms is not None
        if takes_step_input or (most_dead is not None and may_take_step_input(sae)):
            return sae.training_forward_pass(
                TrainStepInput(
                    sae_in=sae_in,
                    terms=self.features.terms,
                    coefficients={
                        name: scheduler.current_l1_coefficient * scale
                        for name, scheduler in self.coefficient_schedulers.items()
                    },
                    dead_neuron_mask=self.dead_neurons,
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self._is_due(self.cfg.wandb_log_frequency),
                    most_dead=most_dead,
                )
            )
        return sae.training_forward_pass(
            sae_in=sae_in,
            dead_neuron_mask=self.dead_neurons,
            current_l1_coefficient=self.current_l1_coefficient,
        )

    def _most_dead(self) -> int | None:
        return self._dead_feature_bound.of_step(
            self.statistics.steps_since_fired, self._dead_within
        )

    def _next_batch(self) -> Float[Tensor, "batch d_in"] | None:
        """The next batch on the SAE's device; None (with a warning) at the source's end."""
        batch = None
        try:
            batch = self.source.next_batch()
            return batch.to(self.sae.device, non_blocking=True)
        except StopIteration:
            logger.warning(
                "The source of activations ended after %d of %d; training ends here.",
                self.n_training_tokens,
                self.cfg.total_training_tokens,
            )
            return None
        except BaseException as error:
            # Only the place in the data has moved; what the source had begun, it has put back.
            if batch is not None:
                self.source.put_back(batch)
            if not self._guard.came_anywhere(error):
                self._guard.is_whole_again()
            raise

    def _begin_finetuning_if_needed(self) -> None:
        main_tokens = getattr(self.cfg, "training_tokens", self.cfg.total_training_tokens)
        if self.started_fine_tuning or self.n_training_tokens <= main_tokens:
            return
        self.started_fine_tuning = True
        if self._finetuning_method is not None:
            leave_only_trainable(self.sae, self._finetuning_method)
            self.finetuning = True


def _refuse_initial_weights(cfg: Any) -> None:
    if TrainingFeatures.of(getattr(cfg, "features", None)).initial_weights is not None:
        raise ValueError(
            "features.initial_weights is for runs that make their SAE. This trainer was given one: "
            "call draw_weights and fit_weights of sae_lens.training.initialization on it before, "
            "and leave the field out."
        )


def _update_sae_lens_training_version(sae: TrainingSAE) -> None:
    """Note in the SAE's config which version of the library trains it."""
    sae.cfg.sae_lens_training_version = str(__version__)


__all__ = [
    "FINETUNING_PARAMETERS",
    "SAETrainer",
    "SaveCheckpointFn",
    "TrainSAEOutput",
    "_log_feature_sparsity",
    "_unwrap_item",
    "_update_sae_lens_training_version",
]
