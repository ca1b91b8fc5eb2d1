"""`ActiveFeatures`: the training features of a run at work, with what of them changes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.optim import Optimizer

from sae_lens.training.dead_feature_terms import DeadFeatureTerms
from sae_lens.training.features import TrainingFeatures
from sae_lens.training.l0_controller import L0Controller, report_own_target
from sae_lens.training.loss_schedules import checkpoint_steps
from sae_lens.training.optim import check_has_thresholds
from sae_lens.training.resampling import resample_dead_features
from sae_lens.training.scheduled_settings import ScheduledSettings
from sae_lens.training.weight_average import WeightAverager


class ActiveFeatures:
    """The features of one run.

    Args:
        features: which, and how.
        sae: the SAE that is trained.
        total_steps: of the run.

    Raises:
        ValueError: when a feature does not go with the SAE, or with the length of the run.

    Attributes:
        settings: what depends on the step: k, p, weights in the loss.
        controller: steers the sparsity coefficient.
        averager: the moving averages of the weights.
        terms: what makes the loss's terms, if not the SAE alone.
    """

    def __init__(self, features: TrainingFeatures, sae: Any, total_steps: int) -> None:
        self.features = features
        self.total_steps = total_steps
        self.settings = ScheduledSettings(features, sae, total_steps)
        self.controller = L0Controller(
            features.target_l0, sae, total_steps, features.gradient_accumulation_steps
        )
        self.averager = WeightAverager(features.weight_average)
        self.terms: DeadFeatureTerms | None = None
        if features.aux_k is not None or features.ghost_gradients:
            self.terms = DeadFeatureTerms(sae, features.aux_k, features.ghost_gradients)
        if features.resampling is not None:
            features.resampling.check_fits(sae, total_steps)
        if features.jumprelu_lr_factor != 1.0:
            check_has_thresholds(sae)

    @property
    def coefficient_scale(self) -> float:
        """What the sparsity coefficient is multiplied with."""
        return self.controller.scale * self.settings.multiple("sparsity")

    # -- before and after a step ------------------------------------------------------------------

    def before_step(self, sae: Any, step: int) -> None:
        """Set what depends on the step."""
        self.settings.before_step(sae, step)
        if self.terms is not None:
            self.terms.aux_scale = self.settings.multiple("auxiliary")

    def completes_update(self, step: int) -> bool:
        """Whether the optimiser moves in this step, or gradients only add up."""
        return (step + 1) % self.features.gradient_accumulation_steps == 0

    @torch.no_grad()
    def after_step(
        self,
        sae: Any,
        optimizer: Optimizer,
        batch: Tensor,
        output: Any,
        step: int,
        dead: Bool[Tensor, " d_sae"],
    ) -> None:
        """Steer, resample and average."""
        self.controller.observe(output)
        resampling = self.features.resampling
        n_steps = self.features.gradient_accumulation_steps
        if resampling is not None and resampling.is_due(step, self.total_steps, n_steps):
            resample_dead_features(sae, optimizer, batch, output, dead, resampling.encoder_norm)
        self.averager.update(sae)

    def finish(self, sae: Any, mean_l0: float | None = None) -> None:
        """Give the SAE the averaged weights; say when a target L0 was not reached.

        Args:
            sae: the SAE.
            mean_l0: features per token of late, where that is known.
        """
        self.averager.copy_into(sae)
        self.settings.finish(sae)
        self.controller.report()
        report_own_target(sae, mean_l0)

    def metrics(self) -> dict[str, float]:
        """What is worth logging."""
        if self.features.target_l0 is None and "sparsity" not in self.features.weight_schedules:
            return {}
        return {"details/coefficient_scale": self.coefficient_scale}

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What of the features changes, and where the scheduled settings started."""
        return {
            "starts": dict(self.settings.starts),
            **self.controller.state_dict(),
            **self.averager.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.settings.starts |= state.get("starts", {})
        self.controller.load_state_dict(state)
        self.averager.load_state_dict(state)


def checkpoint_tokens(
    features: TrainingFeatures, total_tokens: int, batch_size: int, n_checkpoints: int
) -> list[int] | None:
    """Numbers of tokens after which checkpoints are due, when spaced by logarithm; else None."""
    if features.checkpoint_spacing == "linear":
        return None
    steps = checkpoint_steps(total_tokens // batch_size, n_checkpoints, "log")
    # a checkpoint is written once its threshold has been passed
    return [step * batch_size - 1 for step in steps]
