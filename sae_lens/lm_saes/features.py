"""Training features that `TrainerConfig` has no fields for, at work in a `Trainer`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Optimizer

from sae_lens.lm_saes.adapter import LossParts, SAEAdapter, TokenBatch
from sae_lens.lm_saes.config import TrainerConfig
from sae_lens.training.features import TrainingFeatures
from sae_lens.training.l0_controller import L0Controller
from sae_lens.training.loss_schedules import resolve_steps
from sae_lens.training.resampling import resample_dead_features
from sae_lens.training.scheduled_settings import ScheduledSettings
from sae_lens.training.weight_average import WeightAverager

# What TrainerConfig and InitializerConfig say under names of their own, or what needs a source of
# activations that can look ahead.
_ELSEWHERE = {
    "lr_schedule": "lr_scheduler_name and the fields after it",
    "jumprelu_lr_factor": "jumprelu_lr_factor",
    "k_schedule": "initial_k and the fields after it",
    "aux_k": "auxk_coefficient and k_aux",
    "dead_after_tokens": "dead_threshold",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "max_gradient_norm": "clip_grad_norm",
    "checkpoint_spacing": "check_point_save_mode",
    "initial_weights": "InitializerConfig",
    "whitening_shrinkage": "SAETrainer, which can whiten",
}


def checked_features(
    features: TrainingFeatures | dict[str, Any] | None, cfg: TrainerConfig
) -> TrainingFeatures:
    """The features of a trainer.

    Raises:
        ValueError: for one that the trainer's config has a field for, or that contradicts it.
    """
    found = TrainingFeatures.of(features)
    default = TrainingFeatures()
    for field in fields(found):
        name = field.name
        if name in _ELSEWHERE and getattr(found, name) != getattr(default, name):
            raise ValueError(
                f"features.{name} cannot be given to this trainer; use {_ELSEWHERE[name]}."
            )
    if found.optimizer is not None and cfg.optimizer_class != "adam":
        raise ValueError(
            f"optimizer_class={cfg.optimizer_class!r} and features.optimizer both name an "
            "optimiser; give one of them."
        )
    if found.p_schedule is not None and cfg.sparsity_loss_type != "power":
        raise ValueError(
            f"features.p_schedule needs sparsity_loss_type='power', not "
            f"{cfg.sparsity_loss_type!r}; the others have no p."
        )
    if found.target_l0 is not None and cfg.sparsity_loss_type is None:
        raise ValueError(
            "features.target_l0 steers the sparsity term, and sparsity_loss_type is None; choose "
            "one."
        )
    return found


class TrainerFeatures:
    """The features of one `Trainer`.

    Args:
        features: which, checked.
        cfg: the trainer's config.
        adapter: the SAE.
        total_steps: of the run.

    Attributes:
        norm_limit: the longest activation that is trained on; None for any.
    """

    def __init__(
        self,
        features: TrainingFeatures,
        cfg: TrainerConfig,
        adapter: SAEAdapter,
        total_steps: int,
    ) -> None:
        sae = adapter.sae
        self.features, self.total_steps = features, total_steps
        self.n_steps = cfg.gradient_accumulation_steps  # of an update
        self.settings = ScheduledSettings(
            features,
            sae,
            total_steps,
            held={
                "p": cfg.p,
                "sparsity": cfg.l1_coefficient if cfg.sparsity_loss_type else None,
                "auxiliary": cfg.auxk_coefficient,
                "pre_act": cfg.lp_coefficient if adapter.has_thresholds else None,
            },
        )
        self.controller = L0Controller(
            features.target_l0, sae, total_steps, cfg.gradient_accumulation_steps
        )
        self.controller.wait_until(resolve_steps(cfg.l1_coefficient_warmup_steps, total_steps))
        self.averager = WeightAverager(features.weight_average)
        self.ghost_gradients = features.ghost_gradients or bool(
            getattr(sae.cfg, "use_ghost_grads", False)
        )
        if features.resampling is not None:
            features.resampling.check_fits(sae, total_steps)
        self.norm_limit: float | None = None

    @property
    def needs_dead_features(self) -> bool:
        """Whether something is done for dead features."""
        return self.ghost_gradients or self.features.resampling is not None

    def take_norms(self, adapter: SAEAdapter, x: Float[Tensor, "tokens d_in"]) -> None:
        """Set the limit from the norms of the first (scaled) batch; note them in the metadata."""
        chosen = self.features.norm_filter
        if chosen is None or self.norm_limit is not None:
            return
        median = x.float().norm(dim=-1).median().item()
        self.norm_limit = median * chosen.multiple
        extra = adapter.sae.cfg.extra_metadata
        extra["norm_filter_multiple"] = chosen.multiple
        extra["norm_filter_median"] = median / adapter.scaling_factor  # of raw activations

    def scale(self) -> float:
        """What the sparsity coefficient is multiplied with."""
        return self.controller.scale * self.settings.multiple("sparsity")

    @torch.no_grad()
    def after_update(
        self,
        adapter: SAEAdapter,
        optimizer: Optimizer,
        rows: TokenBatch,
        parts: LossParts,
        step: int,
        is_dead: Bool[Tensor, " d_sae"] | None,
    ) -> None:
        """Steer, resample and average."""
        self.controller.observe(parts.output)
        resampling = self.features.resampling
        if resampling is not None and resampling.is_due(step, self.total_steps, self.n_steps):
            assert is_dead is not None, "dead features are counted for resampling"
            share, output = resampling.encoder_norm, parts.output
            resample_dead_features(adapter.sae, optimizer, rows.rows, output, is_dead, share)
        self.averager.update(adapter.sae)

    def state_dict(self) -> dict[str, Any]:
        """What of them changes."""
        return {
            **self.controller.state_dict(),
            **self.averager.state_dict(),
            "starts": dict(self.settings.starts),
            "norm_limit": self.norm_limit,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.controller.load_state_dict(state)
        self.averager.load_state_dict(state)
        self.settings.starts |= state["starts"]
        self.norm_limit = state["norm_limit"]
