"""`SAETrainer`: from batches of activations to a trained SAE.

`fit` is the loop and `_train_step` the mathematics of one step. Statistics, logging, checkpoints,
evaluations and interruptions are objects or functions of their own, which the loop calls.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens._version import __version__
from sae_lens.errors import DataSourceError
from sae_lens.saes.training import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.training_step import reported_features
from sae_lens.training.active_features import (
    ActiveFeatures,
    checkpoint_tokens,
    chosen_optimizer,
    step_schedule,
)
from sae_lens.training.checkpoint_policy import CheckpointPolicy
from sae_lens.training.checkpoints import checkpoint_thresholds, ensure_writable
from sae_lens.training.features import TrainingFeatures
from sae_lens.training.finetuning import (
    FINETUNING_PARAMETERS,
    add_scaling_factor,
    freeze_scaling_factor,
    leave_only_trainable,
)
from sae_lens.training.interruptions import IterationGuard
from sae_lens.training.log_values import (
    _log_feature_sparsity,
    _unwrap_item,
    density_values,
    loss_values,
    reconstruction_values,
    weight_values,
)
from sae_lens.training.loggers import make_logger
from sae_lens.training.nonfinite import NonFiniteLossError, NonFiniteWatch
from sae_lens.training.optim import (
    L1Scheduler,
    clip_and_step,
    gradient_norm,
    make_optimizer,
)
from sae_lens.training.resumption import capture, restore
from sae_lens.training.rewinding import rewind
from sae_lens.training.run_folder import BEST_NAME, open_checkpoint
from sae_lens.training.sources import ActivationScaler, pause_prefetching
from sae_lens.training.statistic_names import FiringStatisticsNames
from sae_lens.training.statistics import FiringStatistics
from sae_lens.training.trainer_checkpoints import logging_config, save_without_runner
from sae_lens.training.trainer_parts import (
    make_coefficient_schedulers,
    make_lr_scheduler,
    remade_lr_scheduler,
    trainer_parts,
)

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


class SAETrainer(FiringStatisticsNames):
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
        self.logger = parts.logger or make_logger(logging_config(self.cfg))
        self.save_checkpoint_fn = parts.save_checkpoint_fn
        self.save_checkpoint: Any = self.save_checkpoint_fn
        if not parts.has_runner:
            self.save_checkpoint = save_without_runner
            if self.cfg.checkpoint_path is not None:
                ensure_writable(self.cfg.checkpoint_path)

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
        self.features = ActiveFeatures(
            TrainingFeatures.of(getattr(self.cfg, "features", None)),
            self.sae,
            self.cfg.total_training_steps,
        )
        self.checkpoint_thresholds = self._checkpoint_thresholds()
        device = self.sae.device
        self.statistics = FiringStatistics(self.sae.cfg.d_sae, device)
        self._on_nan = getattr(self.cfg, "on_nan", "stop")
        self._nonfinite = NonFiniteWatch(device, skips=self._on_nan == "skip_batch")
        self.rewinds: dict[str, Any] = {}
        self._guard = IterationGuard()
        self.request_stop = self._guard.request_stop
        self.request_checkpoint = self._guard.request_checkpoint
        self._policy = CheckpointPolicy.from_config(self.cfg)
        self._state_before_finishing: dict[str, Any] | None = None

        self.optimizer = self._make_optimizer()
        self.lr_scheduler = make_lr_scheduler(self.optimizer, self.cfg)
        self.coefficient_schedulers = make_coefficient_schedulers(self.sae, self.cfg)
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

        Raises:
            NonFiniteLossError: when the loss stops being finite, after a checkpoint (and unless
                `on_nan` of the config says otherwise).
            DataSourceError: when no more data can be read.
        """
        for _ in self.steps():
            pass
        return self.sae

    def steps(self) -> Iterator[None]:
        """The work of `fit`, a training step at a time: for several trainers side by side."""
        self.source.prepare()
        self._policy.start_clock()
        with self._progress_bar() as pbar, self._saving_when_not_finite():
            while self.n_training_tokens < self.cfg.total_training_tokens:
                with self._guard.iteration():
                    acts = self._next_batch()
                    if acts is None:
                        break
                    self.n_training_tokens += self.cfg.train_batch_size_tokens
                    try:
                        step_output = self._train_step(sae=self.sae, sae_in=acts)
                        if self.logger.is_active:
                            self._log_train_step(step_output)
                    except NonFiniteLossError as error:
                        if self._on_nan != "rewind":
                            raise
                        self._rewind(error)
                        continue
                    self._run_and_log_evals()
                    self.n_training_steps += 1
                    self._update_pbar(step_output, pbar)
                    self._begin_finetuning_if_needed()
                    self._checkpoint_if_needed()
                yield
            self._nonfinite.check()
        with self._guard.iteration():
            # The final checkpoint, too, can be gone on from, for a longer training.
            self._state_before_finishing = self._resume_state(copies_weights=True)
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
        if self.normalizes_decoder:
            sae.set_decoder_norm_to_unit_norm()
        if (self.n_training_steps + 1) % self.cfg.feature_sampling_window == 0:
            if self.logger.is_active:
                self.logger.log(self._build_sparsity_log_dict(), step=self.n_training_steps)
            self._reset_running_sparsity_stats()

        self.features.before_step(sae, self.n_training_steps)
        sae_in = self.features.keep(sae_in)
        with self.autocast_if_enabled:
            output = self._forward(sae, sae_in)
        (output.loss / self.features.features.gradient_accumulation_steps).backward()
        if not self.features.completes_update(self.n_training_steps):
            self.statistics.update(reported_features(output))
            self._advance_schedules()
            return output
        if self.normalizes_decoder and sae.W_dec.grad is not None:
            # Along its own direction a row could only grow, which the next normalisation undoes.
            sae.remove_gradient_parallel_to_decoder_directions()
        norm = gradient_norm(sae.parameters())
        skip = self._nonfinite.observe(output.loss, norm, sae_in, self.n_training_steps)
        if skip.device.type == "cpu" and skip:
            logger.warning("The batch of step %d is skipped: no update.", self.n_training_steps)
            self.optimizer.zero_grad()
            self.optimizer.step()  # without gradients it changes nothing, but schedules expect it
        else:
            self.statistics.update(reported_features(output))
            limit = self.features.features.max_gradient_norm
            clip_and_step(self.optimizer, sae.parameters(), norm, skip, limit)
            sae.recycle_gradients()
            self.features.after_step(
                sae, self.optimizer, output, self.n_training_steps, self.dead_neurons
            )
        self.optimizer.zero_grad()
        self._advance_schedules()
        if (self.n_training_steps + 1) % _STEPS_BETWEEN_CHECKS == 0:
            self._nonfinite.check()
        return output

    def _advance_schedules(self) -> None:
        step_schedule(self.lr_scheduler)
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()

    def _forward(self, sae: TrainingSAE, sae_in: Tensor) -> TrainStepOutput:
        self._l1_coefficient_used = self.current_l1_coefficient
        scale = self.features.coefficient_scale
        if sae.form == "v6":
            return sae.training_forward_pass(
                TrainStepInput(
                    sae_in=sae_in,
                    coefficients={
                        name: scheduler.current_l1_coefficient * scale
                        for name, scheduler in self.coefficient_schedulers.items()
                    },
                    dead_neuron_mask=self.dead_neurons,
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self._is_due(self.cfg.wandb_log_frequency),
                )
            )
        return sae.training_forward_pass(
            sae_in=sae_in,
            dead_neuron_mask=self.dead_neurons,
            current_l1_coefficient=self.current_l1_coefficient,
        )

    def _next_batch(self) -> Float[Tensor, "batch d_in"] | None:
        """The next batch on the SAE's device; None (with a warning) at the source's end."""
        try:
            return self.source.next_batch().to(self.sae.device, non_blocking=True)
        except DataSourceError:
            # Nothing has moved but the place in the data, and that can be gone on from.
            self._guard.is_in_step = True
            raise
        except StopIteration:
            logger.warning(
                "The source of activations ended after %d of %d; training ends here.",
                self.n_training_tokens,
                self.cfg.total_training_tokens,
            )
            return None

    @property
    def normalizes_decoder(self) -> bool:
        """Whether decoder rows are kept at unit norm."""
        of_sae = getattr(self.sae.cfg, "normalize_sae_decoder", False)
        return bool(getattr(self.cfg, "normalize_sae_decoder", of_sae))

    def _finish_weights(self) -> None:
        """Bring the weights to the form in which they are saved and returned.

        The decoder rows are normalised once more, since the last update moved them. Then, if the
        SAE was trained on scaled activations, the factor is folded in, so that it works on raw
        ones; the rows are not normalised after that, which would take the factor out again.
        """
        self.features.finish(self.sae)
        if self.normalizes_decoder:
            self.sae.set_decoder_norm_to_unit_norm()
        factor = self.source.norm_scaling_factor
        if factor is not None:
            self.sae.fold_activation_norm_scaling_factor(factor)
            self.source.norm_scaling_factor = None
        self.weights_are_final = True

    def _begin_finetuning_if_needed(self) -> None:
        main_tokens = getattr(self.cfg, "training_tokens", self.cfg.total_training_tokens)
        if self.started_fine_tuning or self.n_training_tokens <= main_tokens:
            return
        self.started_fine_tuning = True
        if self._finetuning_method is not None:
            leave_only_trainable(self.sae, self._finetuning_method)
            self.finetuning = True

    # -- statistics -------------------------------------------------------------------------------

    @property
    def dead_neurons(self) -> Bool[Tensor, " d_sae"]:
        """Which features have been silent for more than the dead-feature window."""
        return self.statistics.silent_for_more_than(self.cfg.dead_feature_window)

    @property
    def current_l1_coefficient(self) -> float:
        """The sparsity coefficient of the next step."""
        return self.l1_scheduler.current_l1_coefficient * self.features.coefficient_scale

    def _reset_running_sparsity_stats(self) -> None:
        self.statistics.reset_window()

    # -- logging ----------------------------------------------------------------------------------

    def _is_due(self, every_n_steps: int) -> bool:
        return (self.n_training_steps + 1) % every_n_steps == 0

    def _log_train_step(self, step_output: TrainStepOutput) -> None:
        if self._is_due(self.cfg.wandb_log_frequency):
            self._nonfinite.check()
            values = self._build_train_step_log_dict(step_output, self.n_training_tokens)
            self.logger.log(values, step=self.n_training_steps)

    def _build_train_step_log_dict(
        self, output: TrainStepOutput, n_training_tokens: int
    ) -> dict[str, Any]:
        # By now the schedule has moved on: the loss was made with the coefficient before.
        used = self._l1_coefficient_used
        used = self.current_l1_coefficient if used is None else used
        return {
            **loss_values(output.loss, output.losses, used),
            **reconstruction_values(output),
            **{f"metrics/{name}": _unwrap_item(value) for name, value in output.metrics.items()},
            "sparsity/mean_passes_since_fired": self.n_forward_passes_since_fired.mean().item(),
            "sparsity/dead_features": self.dead_neurons.sum().item(),
            "details/current_learning_rate": self.optimizer.param_groups[0]["lr"],
            "details/current_l1_coefficient": self.current_l1_coefficient,
            "details/n_training_tokens": n_training_tokens,
            **self.features.metrics(),
        }

    def _build_sparsity_log_dict(self) -> dict[str, Any]:
        threshold = getattr(self.cfg, "dead_feature_threshold", 1e-8)
        return density_values(self.feature_sparsity, threshold)

    @torch.no_grad()
    def _run_and_log_evals(self) -> None:
        every = self.cfg.wandb_log_frequency * self.cfg.eval_every_n_wandb_logs
        is_wanted = self.logger.is_active or self._policy.best_metric is not None
        if self.evaluator is None or not is_wanted or not self._is_due(every):
            return
        self.sae.eval()
        pause_prefetching(self.activations_store)  # the evaluator uses the model
        # Whether there are evaluations must not change the random numbers of the training.
        devices = [self.sae.device] if self.sae.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            metrics = self.evaluator(
                self.sae, self.activations_store, ActivationScaler(self.source)
            )
        if self.logger.is_active:
            self.logger.log({**metrics, **weight_values(self.sae)}, step=self.n_training_steps)
        self._policy.take_evaluation(metrics)
        self.sae.train()

    @property
    def trainer_eval_config(self) -> Any:
        """The `EvalConfig` of evaluations during training; None when the evaluator has none."""
        return getattr(self.evaluator, "eval_config", None)

    @trainer_eval_config.setter
    def trainer_eval_config(self, value: Any) -> None:
        self.evaluator.eval_config = value  # type: ignore[union-attr]

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.cfg.total_training_tokens,
            initial=self.n_training_tokens,
            desc="Training SAE",
            disable=not getattr(self.cfg, "verbose", True),
        )

    def _update_pbar(
        self, step_output: TrainStepOutput, pbar: tqdm, update_interval: int = 100
    ) -> None:
        if self.n_training_steps % update_interval == 0:
            losses = " | ".join(
                f"{name}: {_unwrap_item(loss):.5f}" for name, loss in step_output.losses.items()
            )
            pbar.set_description(f"{self.n_training_steps}| {losses}")
            pbar.update(update_interval * self.cfg.train_batch_size_tokens)

    # -- checkpoints and state --------------------------------------------------------------------

    def _checkpoint_thresholds(self) -> list[int]:
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

    def _make_optimizer(self) -> torch.optim.Optimizer:
        cfg, choice = self.cfg, self.features.features.optimizer
        if choice is None:
            return make_optimizer(self.sae.parameters(), cfg.lr, cfg.adam_beta1, cfg.adam_beta2)
        betas = (cfg.adam_beta1, cfg.adam_beta2)
        return chosen_optimizer(choice, self.sae.parameters(), cfg.lr, betas)

    def _checkpoint_if_needed(self) -> None:
        if not self.features.completes_update(self.n_training_steps - 1):
            return  # checkpoints do not hold gradients that are still adding up
        is_due = self._policy.is_time() | self._guard.take_checkpoint_request()
        if self.checkpoint_thresholds and self.n_training_tokens > self.checkpoint_thresholds[0]:
            self.checkpoint_thresholds.pop(0)
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
        # The state that is gone back to holds a count of its own.
        rewind(self, error)
        self._nonfinite.forget()

    def resume_state(self) -> dict[str, Any] | None:
        """What a checkpoint needs for the run to go on from it; None in the middle of a step."""
        if self._state_before_finishing is not None:
            return self._state_before_finishing
        return self._resume_state() if self._guard.is_in_step else None

    def _resume_state(self, copies_weights: bool = False) -> dict[str, Any] | None:
        if not hasattr(self.activations_store, "load"):
            return None  # nobody could find the place in the data again
        state = capture(self)
        if copies_weights:
            state["sae"] = {name: tensor.clone() for name, tensor in state["sae"].items()}
        return state

    def resume(self, checkpoint: str | Path) -> None:
        """Go on from a checkpoint of a trainer that was made in the same way.

        Args:
            checkpoint: its folder, or that of its run.

        Raises:
            FileNotFoundError: when there is nothing to go on from.
            DamagedCheckpointError: when a file of it is missing or has changed.
            ValueError: when it is of another SAE.
        """
        restore(self, open_checkpoint(checkpoint))

    def remake_lr_scheduler(self) -> None:
        """Make the schedule of the learning rate anew for the config's length."""
        self.lr_scheduler = remade_lr_scheduler(self.optimizer, self.cfg, self.n_training_steps)

    @contextmanager
    def _saving_when_not_finite(self) -> Iterator[None]:
        try:
            yield
        except NonFiniteLossError:
            self.save_checkpoint(trainer=self, checkpoint_name=str(self.n_training_tokens))
            raise

    def state_dict(self) -> dict[str, Any]:
        """What of the trainer changes during training, besides the SAE and the source."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
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


_COUNTERS = (
    "n_training_steps", "n_training_tokens", "started_fine_tuning", "finetuning",
    "weights_are_final",
)  # fmt: skip
_STATEFUL_PARTS = ("statistics", "optimizer", "lr_scheduler", "scaler", "logger", "features")


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
