"""What a trainer tells of its steps: firing statistics, logged values, evaluations, progress."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens.saes.training import TrainingSAE, TrainStepOutput
from sae_lens.training.active_features import ActiveFeatures
from sae_lens.training.checkpoint_policy import CheckpointPolicy
from sae_lens.training.evaluation import Evaluator
from sae_lens.training.folding import saved_form, with_averages
from sae_lens.training.log_values import (
    _unwrap_item,
    density_values,
    loss_values,
    reconstruction_values,
    weight_values,
)
from sae_lens.training.loggers import MetricLogger, make_logger
from sae_lens.training.nonfinite import NonFiniteWatch
from sae_lens.training.optim import L1Scheduler
from sae_lens.training.sources import ActivationScaler, ActivationSource, pause_prefetching
from sae_lens.training.statistic_names import FiringStatisticsNames
from sae_lens.training.trainer_checkpoints import logging_config


class TrainerReports(FiringStatisticsNames):
    """The part of a trainer that looks at training without changing it."""

    sae: TrainingSAE
    cfg: Any
    activations_store: Any
    source: ActivationSource
    evaluator: Evaluator | None
    features: ActiveFeatures
    optimizer: torch.optim.Optimizer
    l1_scheduler: L1Scheduler
    n_training_steps: int
    _policy: CheckpointPolicy
    _nonfinite: NonFiniteWatch
    _l1_coefficient_used: float | None
    _logger: MetricLogger | None = None
    _logs_to_wandb: bool | None = None
    """as the config said when the logger was made of it; None when it was passed"""

    @property
    def logger(self) -> MetricLogger:
        """Where values go: what was passed, else as the config says, and if it changes its mind."""
        config = logging_config(self.cfg)
        if self._logger is None or self._logs_to_wandb not in (None, bool(config.log_to_wandb)):
            self._logger = make_logger(config)
            self._logs_to_wandb = bool(config.log_to_wandb)
        return self._logger

    @logger.setter
    def logger(self, value: MetricLogger) -> None:
        self._logger, self._logs_to_wandb = value, None

    @property
    def dead_neurons(self) -> Bool[Tensor, " d_sae"]:
        """Which features have been silent for more than the dead-feature window.

        Or, where the run's features ask for that, for a number of tokens.
        """
        n_tokens = self.features.features.dead_after_tokens
        if n_tokens is not None:
            return self.statistics.silent_for_tokens(n_tokens)
        return self.statistics.silent_for_more_than(self.cfg.dead_feature_window)

    def _dead_within(self, n_steps: int) -> Bool[Tensor, " d_sae"]:
        """Which features can be dead some steps from now."""
        n_tokens = self.features.features.dead_after_tokens
        if n_tokens is not None:
            tokens = n_steps * self.cfg.train_batch_size_tokens
            return self.statistics.silent_for_tokens(n_tokens - tokens)
        return self.statistics.silent_for_more_than(self.cfg.dead_feature_window - n_steps)

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
            sae = with_averages(self.sae, self.features.averager.averages)
            if self.source.whitening is not None:
                # evaluators know of scaling; of whitening they need not
                sae = saved_form(sae, self.source)
            metrics = self.evaluator(sae, self.activations_store, ActivationScaler(self.source))
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
