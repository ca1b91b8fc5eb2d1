"""`Trainer`: a training loop over batches that are dicts of tokens, mask and activations."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sae_lens.atomic_files import atomic_save_safetensors, atomic_write_json
from sae_lens.lm_saes.adapter import LossParts, SAEAdapter, as_adapter, fold_dataset_norm
from sae_lens.lm_saes.checkpoints import (
    OPTIMIZER_FILENAME,
    SCHEDULER_FILENAME,
    TRAINER_FILENAME,
    WANDB_FILENAME,
    config_as_dict,
    config_of_dict,
    load_plain,
    load_sae_weights,
    save_plain,
    save_sae,
)
from sae_lens.lm_saes.config import TrainerConfig
from sae_lens.lm_saes.dead_features import tokens_of_silence
from sae_lens.lm_saes.gradients import clip_by_norm_per_entry_
from sae_lens.lm_saes.metrics import GradientMetric, all_metrics
from sae_lens.saes import TrainingSAE
from sae_lens.training.loss_schedules import (
    LearningRateFactor,
    checkpoint_steps,
    k_at_step,
    resolve_steps,
    warm_up_weight,
)
from sae_lens.training.sparse_adam import SparseAdam

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]

# Counters that a checkpoint stores under their own names.
_COUNTERS = (
    "cur_step",
    "cur_tokens",
    "total_training_steps",
    "lr_warm_up_steps",
    "lr_cool_down_steps",
    "k_warmup_steps",
    "k_cold_booting_steps",
    "l1_coefficient_warmup_steps",
    "checkpoint_thresholds",
)


class Trainer:
    """Trains an SAE on a stream of batches.

    Args:
        cfg: the config.

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

    def __init__(self, cfg: TrainerConfig) -> None:
        self.cfg = cfg
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
            parts = self._training_step(adapter, batch)
            self._log_if_due(adapter)
            self._optimize_if_due(sae)
            self._evaluate_if_due(sae, eval_fn)
            self._advance_learning_rate()
            self.cur_step += 1
            self.cur_tokens += len(parts.label)
            self._checkpoint_if_due(sae)
            if self.cur_step >= self.total_training_steps:
                self._optimize_leftover(sae)
                return None
        self._optimize_leftover(sae)
        return True

    def _training_step(self, adapter: SAEAdapter, batch: Batch) -> LossParts:
        """Loss and gradients of one batch, and what is measured of them."""
        cfg, sae = self.cfg, adapter.sae
        batch = adapter.normalize_activations(batch)
        sae.train()
        self._set_k(adapter)
        with self._autocast(sae):
            parts = adapter.compute_loss(
                batch,
                l1_coefficient=self.current_l1_coefficient,
                lp_coefficient=cfg.lp_coefficient,
                auxk_coefficient=cfg.auxk_coefficient,
                sparsity_loss_type=cfg.sparsity_loss_type,
                tanh_stretch_coefficient=cfg.tanh_stretch_coefficient,
                frequency_scale=cfg.frequency_scale,
                p=cfg.p,
                k_aux=cfg.k_aux,
                is_dead=self.is_dead,
            )
        if self.is_dead is not None:
            self.update_dead_statistics(parts.encoding.feature_acts, None, ("batch", "sae"))
        (parts.loss / cfg.gradient_accumulation_steps).backward()
        norm = self._clip_if_due(adapter)
        if not cfg.skip_metrics_calculation:
            for metric in self.metrics:
                metric.update(parts)
                if isinstance(metric, GradientMetric) and norm is not None:
                    metric.observe(norm, cfg.clip_grad_norm)
        return parts

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
        self._make_optimizer(adapter)

    def _make_optimizer(self, adapter: SAEAdapter) -> None:
        cfg = self.cfg
        groups = [
            {"params": parameters, "lr": cfg.learning_rate(name), "name": name}
            for name, parameters in adapter.parameter_groups().items()
            if parameters
        ]
        if cfg.optimizer_class == "sparseadam":
            self.optimizer = SparseAdam(groups, betas=cfg.betas)
        else:
            self.optimizer = Adam(groups, betas=cfg.betas, foreach=cfg.optimizer_foreach)
        factor = LearningRateFactor(
            cfg.lr_scheduler_name,
            self.total_training_steps,
            self.lr_warm_up_steps,
            self.lr_cool_down_steps,
            cfg.lr_end_ratio,
        )
        self.scheduler = LambdaLR(self.optimizer, [factor] * len(groups))
        self._note_target_k(adapter)

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

    def _begin_dead_statistics(self, sae: TrainingSAE) -> None:
        if self.cfg.auxk_coefficient and self.tokens_since_last_activation is None:
            d_sae, device = sae.cfg.d_sae, sae.device
            self.tokens_since_last_activation = torch.zeros(d_sae, dtype=torch.int64, device=device)
            self.is_dead = torch.zeros(d_sae, dtype=torch.bool, device=device)

    # -- schedules --------------------------------------------------------------------------------

    @property
    def current_l1_coefficient(self) -> float:
        """Weight of the sparsity term at this step."""
        if self.cfg.l1_coefficient is None:
            return 1.0
        weight = warm_up_weight(self.cur_step, self.l1_coefficient_warmup_steps)
        return weight * self.cfg.l1_coefficient

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

    def _optimize_if_due(self, sae: TrainingSAE) -> None:
        if self._is_last_of_accumulation:
            self._optimize(sae)

    def _advance_learning_rate(self) -> None:
        assert self.scheduler is not None
        with warnings.catch_warnings():
            # while the first gradients accumulate, torch misses the optimiser's step
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def _optimize_leftover(self, sae: TrainingSAE) -> None:
        """The last batches, too few for a whole accumulation, count as well."""
        if self.cur_step % self.cfg.gradient_accumulation_steps:
            self._optimize(sae)

    def _optimize(self, sae: TrainingSAE) -> None:
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
                "Dead statistics are not initialised; they are when auxk_coefficient is above 0."
            )
        self.tokens_since_last_activation = tokens_of_silence(
            self.tokens_since_last_activation, feature_acts, mask, specs
        )
        self.is_dead = self.tokens_since_last_activation >= self.cfg.dead_threshold
        return self.is_dead

    # -- logs and evaluations ---------------------------------------------------------------------

    def _log_if_due(self, adapter: SAEAdapter) -> None:
        step = self.cur_step + 1
        if self.cfg.skip_metrics_calculation or step % self.cfg.log_frequency:
            return
        values: dict[str, Any] = {}
        for metric in self.metrics:
            values |= metric.compute(adapter)
        assert self.optimizer is not None
        values |= {
            "details/current_learning_rate": self.optimizer.param_groups[0]["lr"],
            "details/n_training_tokens": self.cur_tokens,
            "details/l1_coefficient": self.current_l1_coefficient,
            "details/lp_coefficient": self.cfg.lp_coefficient,
            "details/auxk_coefficient": self.cfg.auxk_coefficient,
        }
        values = {name: value for name, value in values.items() if value is not None}
        if self.wandb_logger is not None:
            self.wandb_logger.log(values, step=step)
        else:
            logger.info("step %d: %s", step, values)

    def _evaluate_if_due(self, sae: TrainingSAE, eval_fn: Callable[..., Any] | None) -> None:
        if eval_fn is not None and (self.cur_step + 1) % self.cfg.eval_frequency == 0:
            sae.eval()
            with torch.no_grad():
                eval_fn(sae)
            sae.train()

    # -- checkpoints ------------------------------------------------------------------------------

    def _checkpoint_if_due(self, sae: TrainingSAE) -> None:
        """`{exp_result_path}/checkpoints/{cur_step}.safetensors`, for raw activations."""
        if not self.checkpoint_thresholds or self.cur_step < self.checkpoint_thresholds[0]:
            return
        self.checkpoint_thresholds.pop(0)
        path = Path(self.cfg.exp_result_path) / "checkpoints" / f"{self.cur_step}.safetensors"
        folded = fold_dataset_norm(sae)
        atomic_save_safetensors(dict(folded.state_dict()), path)

    def save_checkpoint(self, sae: TrainingSAE, checkpoint_path: str | Path) -> Path:
        """Write `{checkpoint_path}/checkpoints/step_{cur_step}`, from which training can go on."""
        sae = as_adapter(sae).sae
        folder = Path(checkpoint_path) / "checkpoints" / f"step_{self.cur_step}"
        folder.mkdir(parents=True, exist_ok=True)
        save_sae(sae, folder)
        state: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        state["cfg"] = config_as_dict(self.cfg)
        state["tokens_since_last_activation"] = self.tokens_since_last_activation
        state["is_dead"] = self.is_dead
        if self.optimizer is not None:
            save_plain(self.optimizer.state_dict(), folder / OPTIMIZER_FILENAME)
        if self.scheduler is not None:
            save_plain(self.scheduler.state_dict(), folder / SCHEDULER_FILENAME)
        run_id = getattr(self.wandb_logger, "id", None)
        if run_id is not None:
            atomic_write_json(folder / WANDB_FILENAME, {"wandb_run_id": str(run_id)})
        save_plain(state, folder / TRAINER_FILENAME)
        return folder

    @classmethod
    def from_checkpoint(
        cls, sae: TrainingSAE, checkpoint_path: str | Path, load_weights: bool = False
    ) -> Trainer:
        """A trainer that goes on where a checkpoint was made.

        Args:
            sae: the SAE, holding the checkpoint's weights already unless `load_weights`.
            checkpoint_path: the folder `step_N`.
            load_weights: give `sae` the checkpoint's weights.

        Raises:
            ValueError: when the folder has no `trainer.pt`, or that no config.
        """
        folder = Path(checkpoint_path)
        if not (folder / TRAINER_FILENAME).exists():
            raise ValueError(f"There is no {TRAINER_FILENAME} in {folder}.")
        adapter = as_adapter(sae)
        state = load_plain(folder / TRAINER_FILENAME, adapter.sae.device)
        if not state.get("cfg"):
            raise ValueError(f"{folder / TRAINER_FILENAME} holds no config.")
        if load_weights:
            load_sae_weights(adapter.sae, folder)
        trainer = cls(config_of_dict(state["cfg"]))
        trainer.cfg.from_pretrained_path = str(checkpoint_path)
        for name in (*_COUNTERS, "tokens_since_last_activation", "is_dead"):
            setattr(trainer, name, state.get(name, getattr(trainer, name)))
        trainer._make_optimizer(adapter)
        assert trainer.optimizer is not None and trainer.scheduler is not None
        for name, part in (
            (OPTIMIZER_FILENAME, trainer.optimizer),
            (SCHEDULER_FILENAME, trainer.scheduler),
        ):
            if (folder / name).exists():
                part.load_state_dict(load_plain(folder / name, adapter.sae.device))
        return trainer
