"""The controller of a run that steers its sparsity coefficient to a target L0."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from sae_lens.late_numbers import LateNumber
from sae_lens.saes.dead_features import may_look_at
from sae_lens.saes.training_step import reported_features
from sae_lens.training.loss_schedules import resolve_steps
from sae_lens.training.statistics import count_active
from sae_lens.training.target_l0 import L0Steering, TargetL0, is_reached

logger = logging.getLogger(__name__)


class L0Controller:
    """The controller of one run.

    Args:
        settings: target and limits; None steers nothing.
        sae: the SAE that is trained.
        total_steps: of the run.
        steps_per_update: batches for each step of the optimiser.

    Raises:
        ValueError: when the SAE has no coefficient to steer, or one of 0, another target of its
            own, or fewer features than the target.

    Attributes:
        steering: what sets the coefficient's scale; None without settings.
        lowest: the smallest L0 of the run so far.
        highest: the largest.
    """

    def __init__(
        self,
        settings: TargetL0 | None,
        sae: Any,
        total_steps: int,
        steps_per_update: int = 1,
    ) -> None:
        self.steering: L0Steering | None = None
        self.lowest, self.highest = math.inf, 0.0
        self._steps_per_update = steps_per_update
        self._underway: tuple[LateNumber, LateNumber] | None = None
        if settings is not None:
            _refuse_without_use(settings, sae)
            due = resolve_steps(settings.reach_at, total_steps) // steps_per_update
            self.steering = L0Steering(settings, total_steps // steps_per_update, due)

    @property
    def scale(self) -> float:
        """What the sparsity coefficient is multiplied with."""
        return 1.0 if self.steering is None else self.steering.scale

    def wait_until(self, step: float) -> None:
        """Leave the coefficient alone before that step, in which its own warm-up has ended."""
        if self.steering is not None:
            self.steering.first = math.ceil(step / self._steps_per_update)

    def observe(self, output: Any) -> None:
        """Take in an update's L0 and error, and set the coefficient's scale for the next.

        Away from the CPU, where knowing them means waiting, those of the update before are taken.
        """
        if self.steering is None:
            return
        features = reported_features(output)
        l0 = count_active(features) / max(features.shape[:-1].numel(), 1)
        error = output.losses["mse_loss"].detach()
        if may_look_at(l0):
            self._take(l0.item(), error.item())
            return
        self._take_what_is_underway()
        self._underway = (LateNumber(l0), LateNumber(error))

    def _take_what_is_underway(self) -> None:
        if self._underway is not None:
            l0, error = self._underway
            self._take(l0.value(), error.value())
            self._underway = None

    def _take(self, l0: float, error: float) -> None:
        assert self.steering is not None
        self.lowest, self.highest = min(self.lowest, l0), max(self.highest, l0)
        self.steering.take(l0, error)

    def report(self) -> None:
        """Say when the target was not reached, and what was."""
        self._take_what_is_underway()
        steering = self.steering
        if steering is None or steering.mean_l0 is None:
            return
        if not is_reached(steering.mean_l0, steering.settings.target):
            held = f" L0 did not answer to it in {steering.n_held} updates."
            logger.warning(
                "The target L0 of %s was not reached: it ended at %.1f, having been between %.1f "
                "and %.1f, with the sparsity coefficient at %.3g times its configured value.%s "
                "Train for longer, or start from another coefficient.",
                steering.settings.target,
                steering.mean_l0,
                self.lowest,
                self.highest,
                steering.scale,
                held if steering.n_held else "",
            )

    def state_dict(self) -> dict[str, Any]:
        """What of it changes; empty when nothing is steered."""
        if self.steering is None:
            return {}
        underway = self._underway
        return {
            "l0_steering": self.steering.state_dict(),
            "range_of_l0": (self.lowest, self.highest),
            "l0_underway": None if underway is None else [late.value() for late in underway],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        if self.steering is None or "l0_steering" not in state:
            return
        self.steering.load_state_dict(state["l0_steering"])
        self.lowest, self.highest = state["range_of_l0"]
        self._underway = None
        if state["l0_underway"] is not None:
            l0, error = (torch.tensor(x, dtype=torch.float64) for x in state["l0_underway"])
            self._underway = (LateNumber(l0), LateNumber(error))


def report_own_target(sae: Any, mean_l0: float | None) -> None:
    """Say when the target L0 in a jumprelu SAE's own loss was not reached, and what was."""
    is_quadratic = getattr(sae.cfg, "jumprelu_sparsity_loss_mode", None) == "quadratic"
    if is_quadratic and mean_l0 is not None and not is_reached(mean_l0, sae.cfg.target_l0):
        logger.warning(
            "The target L0 of %s was not reached: it was %.1f at the end. Train for longer, or "
            "with another l0_coefficient.",
            sae.cfg.target_l0,
            mean_l0,
        )


def _refuse_without_use(settings: TargetL0, sae: Any) -> None:
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
