"""`Trainer`: a training loop over batches that are dicts of tokens, mask and activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sae_lens.lm_saes.adapter import LossParts, SAEAdapter, TokenBatch, as_adapter
from sae_lens.lm_saes.config import TrainerConfig
from sae_lens.lm_saes.dead_features import tokens_of_silence
from sae_lens.lm_saes.features import TrainerFeatures, checked_features
from sae_lens.lm_saes.gradients import clip_by_norm_per_entry_
from sae_lens.lm_saes.idle_settings import warn_of_idle_settings, warn_of_unfinished_k
from sae_lens.lm_saes.metrics import GradientMetric, all_metrics
from sae_lens.lm_saes.optimization import make_optimizer, make_scheduler
from sae_lens.lm_saes.trainer_checkpoints import TrainerCheckpoints
from sae_lens.lm_saes.trainer_reports import TrainerReports
from sae_lens.saes import TrainingSAE
from sae_lens.training.features import TrainingFeatures
from sae_lens.training.loss_schedules import (
    checkpoint_steps,
    k_at_step,
    resolve_steps,
    warm_up_weight,
)

Batch = Mapping[str, Tensor]


class Trainer(TrainerReports, TrainerCheckpoints):
    """Trains an SAE on a stream of batches.

    Args:
        cfg: the config.
        features: training features that the config has no fields for, as for `SAETrainer`.

    Raises:
        ValueError: for a feature that the config does have a field for.

    Attributes:
        cur_step: batches trained on.
        cur_tokens: tokens trained on, without masked ones.
        total_training_steps: `cfg.total_training_tokens` over the tokens of the first batch.
        checkpoint_thresholds: steps after which checkpoints are still due.
        optimizer: made at the first batch.
        scheduler: of its learning rate.
        metrics: what is averaged between two logs.
        tokens_since_last_activation: int64 [d_sae], with aux-k only.
        is_dead: bool [d_sae], with aux-k only.
    """

    def __init__(
        self, cfg: TrainerConfig, features: TrainingFeatures | dict[str, Any] | None = None
    ) -> None:
        self.cfg = cfg
        self.features = checked_features(features, cfg)
        self.checkpoint_thresholds: list[int] = []
        self.total_training_steps = 0
        self.lr_warm_up_steps = 0
        self.lr_cool_down_steps = 0
        self.k_warmup_steps = 0
        self.k_cold_booting_steps = 0
        self.l1_coefficient_warmup_steps = 0
        self.cur_step = 0
        self.cur_tokens = 0
        self.optimizer: Optimizer | None = None
        self.scheduler: LambdaLR | None = None
        self.wandb_logger: Any = None
        self.metrics: list[Any] = []
        self.tokens_since_last_activation: Int[Tensor, " d_sae"] | None = None
        self.is_dead: Bool[Tensor, " d_sae"] | None = None
        self._target_k: int | None = None
        self._active: TrainerFeatures | None = None

    # -- the algorithm ----------------------------------------------------------------------------

    def fit(
        self,
        sae: TrainingSAE,
        activation_stream: Iterable[Batch],
        eval_fn: Callable[[TrainingSAE], Any] | None = None,
        wandb_logger: Any = None,
    ) -> bool | None:
        """Train `sae` in place.

        Args:
            sae: the SAE, on the device to train on.
            activation_stream: dicts of `tokens`, optionally `mask` (1 for a real token), and
                activations by hook point.
            eval_fn: called with the SAE every `cfg.eval_frequency` steps.
            wandb_logger: a W&B run, or anything with `log(values, step=)`.

        Returns:
            None when all steps are done, True when the stream ended before.
        """
        adapter = as_adapter(sae)
        sae = adapter.sae
        self.wandb_logger = wandb_logger
        stream = iter(activation_stream)
        if self.optimizer is None:
            first = next(stream, None)
            if first is None:
                return True
            self._prepare(adapter, first)
            stream = chain([first], stream)
        if not self.metrics:
            self.metrics = all_metrics()
        self._begin_dead_statistics(sae)
        if self.cur_step >= self.total_training_steps:
            return None
        for batch in stream:
            tokens, parts = self._training_step(adapter, batch)
            self._log_if_due(adapter)
            if self._is_last_of_accumulation:
                self._optimize(adapter, tokens, parts)
            self._evaluate_if_due(sae, eval_fn)
            self._advance_learning_rate()
            self.cur_step += 1
            self.cur_tokens += len(parts.label)
            self._checkpoint_if_due(sae)
            if self.cur_step >= self.total_training_steps:
                self._finish(sae)
                return None
        self._optimize_leftover(sae)
        return True

    def _training_step(self, adapter: SAEAdapter, batch: Batch) -> tuple[TokenBatch, LossParts]:
        """Loss and gradients of one batch, and what is measured of them."""
        cfg, sae, active = self.cfg, adapter.sae, self._features_at_work
        tokens = adapter.token_batch(adapter.normalize_activations(batch))
        active.take_norms(adapter, tokens.x)
        tokens = tokens.shorter_than(active.norm_limit)
        sae.train()
        self._set_k(adapter)
        settings = active.settings
        settings.before_step(sae, self.cur_step)
        with self._autocast(sae):
            parts = adapter.compute_loss(
                tokens,
                l1_coefficient=self.current_l1_coefficient,
                lp_coefficient=_scaled(cfg.lp_coefficient, settings.multiple("pre_act")),
                auxk_coefficient=_scaled(cfg.auxk_coefficient, settings.multiple("auxiliary")),
                sparsity_loss_type=cfg.sparsity_loss_type,
                tanh_stretch_coefficient=cfg.tanh_stretch_coefficient,
                frequency_scale=cfg.frequency_scale,
                p=cfg.p if settings.current_p is None else settings.current_p,
                k_aux=cfg.k_aux,
                is_dead=self.is_dead,
                ghost_gradients=active.ghost_gradients,
            )
        if self.is_dead is not None:
            self.update_dead_statistics(parts.feature_acts, None, ("batch", "sae"))
        (parts.loss / cfg.gradient_accumulation_steps).backward()
        norm = self._clip_if_due(adapter)
        if not cfg.skip_metrics_calculation:
            for metric in self.metrics:
                metric.update(parts)
                if isinstance(metric, GradientMetric) and norm is not None:
                    metric.observe(norm, cfg.clip_grad_norm)
        return tokens, parts

    def _finish(self, sae: TrainingSAE) -> None:
        """The last update, averaged weights where they are asked for, and what was not reached."""
        self._optimize_leftover(sae)
        self._features_at_work.averager.copy_into(sae)
        self._features_at_work.controller.report()

    def _autocast(self, sae: TrainingSAE) -> AbstractContextManager[Any]:
        if self.cfg.amp_dtype is None:
            return nullcontext()
        return torch.autocast(sae.device.type, dtype=self.cfg.amp_dtype)

    # -- preparation ------------------------------------------------------------------------------

    def _prepare(self, adapter: SAEAdapter, first: Batch) -> None:
        """Numbers of steps and the optimiser, from the first batch."""
        cfg = self.cfg
        tokens = first.get("tokens")
        n_tokens = len(adapter.token_batch(first).x) if tokens is None else tokens.numel()
        total = cfg.total_training_tokens // max(n_tokens, 1)
        if total < 1:
            raise ValueError(
                f"total_training_tokens={cfg.total_training_tokens} is less than the {n_tokens} "
                "tokens of the first batch; raise it, or make batches smaller."
            )
        self.total_training_steps = total
        self.lr_warm_up_steps = resolve_steps(cfg.lr_warm_up_steps, total)
        self.lr_cool_down_steps = resolve_steps(cfg.lr_cool_down_steps, total)
        self.k_warmup_steps = resolve_steps(cfg.k_warmup_steps, total)
        self.k_cold_booting_steps = resolve_steps(cfg.k_cold_booting_steps, total)
        self.l1_coefficient_warmup_steps = resolve_steps(cfg.l1_coefficient_warmup_steps, total)
        self.checkpoint_thresholds = checkpoint_steps(
            total, cfg.n_checkpoints, cfg.check_point_save_mode
        )
        if cfg.sparsity_loss_type in ("step", "quadratic"):
            adapter.l0_term(cfg.sparsity_loss_type)  # which refuses what cannot be trained so
        warn_of_idle_settings(cfg, adapter)
        self._make_optimizer(adapter)

    def _make_optimizer(self, adapter: SAEAdapter) -> None:
        cfg = self.cfg
        self.optimizer = make_optimizer(cfg, adapter, self.features.optimizer)
        self.scheduler = make_scheduler(
            cfg,
            self.optimizer,
            self.total_training_steps,
            self.lr_warm_up_steps,
            self.lr_cool_down_steps,
        )
        self._note_target_k(adapter)
        self._active = TrainerFeatures(self.features, cfg, adapter, self.total_training_steps)

    @property
    def _features_at_work(self) -> TrainerFeatures:
        assert self._active is not None, "they are made with the optimiser"
        return self._active

    def _note_target_k(self, adapter: SAEAdapter) -> None:
        """The k at the schedule's end is that of the SAE's config."""
        initial, current = self.cfg.initial_k, adapter.current_k
        if initial is None or current is None or self.k_warmup_steps <= 0:
            return
        self._target_k = int(adapter.sae.cfg.activation_fn_kwargs["k"])
        if not self._target_k <= initial <= adapter.sae.cfg.d_sae:
            raise ValueError(
                f"initial_k is {initial}; it must lie between the SAE's k, {self._target_k}, and "
                f"its number of features, {adapter.sae.cfg.d_sae}."
            )
        warn_of_unfinished_k(
            self._target_k,
            self.k_cold_booting_steps,
            self.k_warmup_steps,
            self.total_training_steps,
        )

    def _begin_dead_statistics(self, sae: TrainingSAE) -> None:
        is_needed = self.cfg.auxk_coefficient or self._features_at_work.needs_dead_features
        if is_needed and self.tokens_since_last_activation is None:
            d_sae, device = sae.cfg.d_sae, sae.device
            self.tokens_since_last_activation = torch.zeros(d_sae, dtype=torch.int64, device=device)
            self.is_dead = torch.zeros(d_sae, dtype=torch.bool, device=device)

    # -- schedules --------------------------------------------------------------------------------

    @property
    def current_l1_coefficient(self) -> float:
        """Weight of the sparsity term at this step."""
        scale = 1.0 if self._active is None else self._active.scale()
        if self.cfg.l1_coefficient is None:
            return scale
        weight = warm_up_weight(self.cur_step, self.l1_coefficient_warmup_steps)
        return weight * self.cfg.l1_coefficient * scale

    def _set_k(self, adapter: SAEAdapter) -> None:
        if self._target_k is None:
            return
        assert self.cfg.initial_k is not None
        adapter.set_current_k(
            k_at_step(
                self.cur_step,
                self._target_k,
                self.cfg.initial_k,
                self.k_warmup_steps,
                self.k_cold_booting_steps,
                self.cfg.k_schedule_type,
                self.cfg.k_exponential_factor,
            )
        )

    # -- gradients --------------------------------------------------------------------------------

    @property
    def _is_last_of_accumulation(self) -> bool:
        return (self.cur_step + 1) % self.cfg.gradient_accumulation_steps == 0

    def _clip_if_due(self, adapter: SAEAdapter) -> Tensor | None:
        """The gradient norm of all but thresholds, which are not clipped either."""
        if not self._is_last_of_accumulation:
            return None
        gradients = [p.grad for p in adapter.parameter_groups()["others"] if p.grad is not None]
        return clip_by_norm_per_entry_(gradients, self.cfg.clip_grad_norm) if gradients else None

    def _advance_learning_rate(self) -> None:
        assert self.scheduler is not None
        with warnings.catch_warnings():
            # while the first gradients accumulate, torch misses the optimiser's step
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def _optimize(self, adapter: SAEAdapter, tokens: TokenBatch, parts: LossParts) -> None:
        assert self.optimizer is not None
        self._update(adapter.sae)
        self._features_at_work.after_update(
            adapter, self.optimizer, tokens, parts, self.cur_step, self.is_dead
        )

    def _optimize_leftover(self, sae: TrainingSAE) -> None:
        """The last batches, too few for a whole accumulation, count as well."""
        if self.cur_step % self.cfg.gradient_accumulation_steps:
            self._update(sae)
            self._features_at_work.averager.update(sae)

    def _update(self, sae: TrainingSAE) -> None:
        assert self.optimizer is not None
        self.optimizer.step()
        sae.recycle_gradients()
        self.optimizer.zero_grad()

    # -- dead features ----------------------------------------------------------------------------

    @torch.no_grad()
    def update_dead_statistics(
        self, feature_acts: Tensor, mask: Tensor | None, specs: tuple[str, ...]
    ) -> Bool[Tensor, " d_sae"]:
        """Count the tokens since each feature was active; which are dead by now.

        Args:
            feature_acts: [batch, d_sae] or [batch, context, d_sae].
            mask: 1 for tokens that count, [batch] or [batch, context]; None for all.
            specs: names of the dimensions of `feature_acts`; "sae" is that of features.

        Raises:
            ValueError: before the statistics are initialised, or when `specs` does not fit.
        """
        if self.tokens_since_last_activation is None or self.is_dead is None:
            raise ValueError(
                "Dead statistics are not initialised; they are when auxk_coefficient is above 0, "
                "or another feature needs them."
            )
        self.tokens_since_last_activation = tokens_of_silence(
            self.tokens_since_last_activation, feature_acts, mask, specs
        )
        self.is_dead = self.tokens_since_last_activation >= self.cfg.dead_threshold
        return self.is_dead


def _scaled(coefficient: float | None, multiple: float) -> float | None:
    return None if coefficient is None else coefficient * multiple
