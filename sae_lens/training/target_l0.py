"""Steering a sparsity coefficient until a given number of features is active on average."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from sae_lens.late_numbers import LateNumber
from sae_lens.saes.dead_features import may_look_at
from sae_lens.saes.training_step import reported_features
from sae_lens.training.statistics import count_active

logger = logging.getLogger(__name__)

# A reached L0 further than this from its target is worth a warning.
_TOLERATED_RATIO = 1.2


@dataclass
class TargetL0:
    """Steers the sparsity coefficient until that many features are active on average.

    With e the logarithm of L0 over the target, limited to 1, the coefficient is multiplied with
    `exp(damping e + rate * (sum of e over the steps so far))`: a proportional part, which reacts at
    once, and an integral part, which stays.

    Attributes:
        target: active features per token.
        rate: of the integral part.
        damping: of the proportional part; more of it swings less.
        smoothing: share of the past in the L0 that it looks at.
    """

    target: float
    rate: float = 0.01
    damping: float = 1.0
    smoothing: float = 0.9

    def __post_init__(self) -> None:
        sane = self.target > 0 and self.rate > 0 and self.damping >= 0
        if not (sane and 0 <= self.smoothing < 1):
            raise ValueError(
                f"target_l0 is {self}; target and rate must be above 0, damping at least "
                "0, smoothing in [0, 1)."
            )


class L0Controller:
    """The controller of one run.

    Args:
        settings: target and gains; None steers nothing.
        sae: the SAE that is trained.

    Raises:
        ValueError: when the SAE has no coefficient to steer, another target of its own, or fewer
            features than the target.

    Attributes:
        scale: what the sparsity coefficient is multiplied with.
        mean_l0: the smoothed L0; None before the first step.
        lowest: the smallest L0 of the run so far.
        highest: the largest.
    """

    def __init__(self, settings: TargetL0 | None, sae: Any) -> None:
        self.settings = settings
        self.scale = 1.0
        self.log_scale = 0.0
        self.mean_l0: float | None = None
        self.lowest, self.highest = math.inf, 0.0
        self._underway: LateNumber | None = None
        if settings is None:
            return
        coefficients = sae.get_coefficients()
        if not coefficients:
            raise ValueError(
                f"target_l0 steers a sparsity coefficient; {sae.cfg.architecture!r} SAEs have "
                "none. Their k is their L0."
            )
        if not any(coefficient.value for coefficient in coefficients.values()):
            raise ValueError(
                "target_l0 multiplies the sparsity coefficient, which is 0; set one above it."
            )
        if settings.target > sae.cfg.d_sae:
            raise ValueError(
                f"target_l0.target is {settings.target}; there are only {sae.cfg.d_sae} features."
            )
        if getattr(sae.cfg, "jumprelu_sparsity_loss_mode", None) == "quadratic":
            raise ValueError(
                "target_l0 and jumprelu_sparsity_loss_mode='quadratic' both lead to a target L0; "
                "use one of them."
            )

    def observe(self, output: Any) -> None:
        """Take in the L0 of a step, and set the coefficient's scale for the next.

        Away from the CPU, where knowing it means waiting, that of the step before is taken.
        """
        settings = self.settings
        if settings is None:
            return
        features = reported_features(output)
        l0 = count_active(features) / max(features.shape[:-1].numel(), 1)
        if may_look_at(l0):
            self._take(l0.item())
            return
        self._take_what_is_underway()
        self._underway = LateNumber(l0)

    def _take_what_is_underway(self) -> None:
        if self._underway is not None:
            self._take(self._underway.value())
            self._underway = None

    def _take(self, l0: float) -> None:
        settings = self.settings
        assert settings is not None
        past = l0 if self.mean_l0 is None else self.mean_l0
        self.mean_l0 = settings.smoothing * past + (1 - settings.smoothing) * l0
        self.lowest, self.highest = min(self.lowest, l0), max(self.highest, l0)
        error = math.log(max(self.mean_l0, 1e-3) / settings.target)
        error = max(-1.0, min(1.0, error))
        self.log_scale += settings.rate * error
        self.scale = math.exp(self.log_scale + settings.damping * error)

    def report(self) -> None:
        """Say when the target was not reached, and what was."""
        self._take_what_is_underway()
        settings = self.settings
        if settings is None or self.mean_l0 is None:
            return
        if not _is_reached(self.mean_l0, settings.target):
            logger.warning(
                "The target L0 of %s was not reached: it ended at %.1f, having been between %.1f "
                "and %.1f, with the sparsity coefficient at %.3g times its configured value. Train "
                "for longer, or start from another coefficient.",
                settings.target,
                self.mean_l0,
                self.lowest,
                self.highest,
                self.scale,
            )

    def state_dict(self) -> dict[str, Any]:
        """What of it changes."""
        return {
            "log_scale": self.log_scale,
            "coefficient_scale": self.scale,
            "mean_l0": self.mean_l0,
            "range_of_l0": (self.lowest, self.highest),
            "l0_underway": None if self._underway is None else self._underway.value(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.log_scale, self.scale = state["log_scale"], state["coefficient_scale"]
        self.mean_l0 = state["mean_l0"]
        self.lowest, self.highest = state.get("range_of_l0", (math.inf, 0.0))
        underway = state.get("l0_underway")
        self._underway = None if underway is None else LateNumber(torch.tensor(underway))


def report_own_target(sae: Any, mean_l0: float | None) -> None:
    """Say when the target L0 in a jumprelu SAE's own loss was not reached, and what was."""
    is_quadratic = getattr(sae.cfg, "jumprelu_sparsity_loss_mode", None) == "quadratic"
    if is_quadratic and mean_l0 is not None and not _is_reached(mean_l0, sae.cfg.target_l0):
        logger.warning(
            "The target L0 of %s was not reached: it was %.1f at the end. Train for longer, or "
            "with another l0_coefficient.",
            sae.cfg.target_l0,
            mean_l0,
        )


def _is_reached(l0: float, target: float) -> bool:
    return 1 / _TOLERATED_RATIO <= max(l0, 1e-9) / target <= _TOLERATED_RATIO
