"""Steering a sparsity coefficient until a given number of features is active on average: the law.

What it reads of a training and says about it is in `l0_controller`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from sae_lens.training.loss_schedules import check_steps

logger = logging.getLogger(__name__)

# A reached L0 further than this from its target is worth a warning.
TOLERATED_RATIO = 1.2
# The coefficient may fall faster than it rises: features that it kills do not come back.
_FALL_RATE = 3.0
# An L0 that is off is led to its target in this share of the training at the least.
_SHORTEST_WAY = 0.1
# The pace of L0 is a mean over this share of the training, or this many updates.
_PACE_SHARE, _PACE_UPDATES = 0.03, 10
# After the coefficient rose e-fold: what counts as no answer of L0, and as a worse reconstruction.
# As long as the error is below this share of the first one, it may have to rise: an SAE that has
# found all features there are drops whole ones only under a far larger penalty.
_ANSWER, _WORSE, _BAD = 0.1, 1.05, 0.5
# L0 falls as fast as the learning rate lets it if its pace stayed between these multiples of it
# and is below this share of the pace that it needs.
_SAME_PACE, _LATE = (0.5, 1.1), 0.8
# L0 falls when it would fall by this much, as a logarithm, in the whole training.
_FALLING = 0.5


@dataclass
class TargetL0:
    """Steers the sparsity coefficient until that many features are active on average.

    With y the logarithm of L0 over the target and r the steps in which it should vanish (those
    until `reach_at`, at least a tenth of the training), the logarithm of the coefficient changes by
    `gain (dy/dt + y / r)` in each step: not at all while L0 is on its way to be there in time.

    It starts from a small coefficient, so that the configured one may be too large. During the
    coefficient's own warm-up it does nothing. It does not raise the coefficient as long as raising
    it e-fold has made no difference: when L0 falls no faster than before, which is as fast as the
    learning rate lets it, and when L0 stays and the reconstruction, with more than half of the
    first error, gets worse, which is how SAEs collapse.

    Attributes:
        target: active features per token.
        reach_at: when L0 should be there: steps, or a share of all in [0, 1].
        start: multiple of the configured coefficient with which the training starts.
        gain: how strongly it steers.
        max_rise: how often at most the coefficient grows e-fold, if it did so during the whole
            training: the limit for each step is that over the number of steps. It may fall three
            times as fast.
        max_change: another limit for each step, for short trainings.
        max_factor: the coefficient stays between the configured one over this and times this.
        smoothing: share of the past in the L0 that it looks at.
    """

    target: float
    reach_at: int | float = 0.5
    start: float = 0.1
    gain: float = 2.0
    max_rise: float = 15.0
    max_change: float = 0.05
    max_factor: float = 1000.0
    smoothing: float = 0.9

    def __post_init__(self) -> None:
        limits = (self.max_rise, self.max_change, self.max_factor)
        above_zero = all(value > 0 for value in (self.target, self.start, self.gain, *limits))
        if not above_zero or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"target_l0 is {self}; smoothing must lie in [0, 1), all else must be above 0."
            )
        if not 1 / self.max_factor <= self.start <= self.max_factor:
            raise ValueError(
                f"target_l0 is {self}; start must lie between 1 / max_factor and max_factor, which "
                "are the limits of the coefficient."
            )
        check_steps("target_l0.reach_at", self.reach_at)


class _Rise(NamedTuple):
    """What was so when the coefficient began to rise from where it was."""

    log_scale: float
    distance: float
    pace: float
    error: float


class L0Steering:
    """The law at work, on plain numbers.

    Args:
        settings: target and limits.
        n_updates: of the whole training.
        due: the update in which L0 should be at its target.
        first: the update from which on it steers.

    Attributes:
        scale: what the sparsity coefficient is multiplied with.
        mean_l0: the smoothed L0; None before the first update.
        n_held: updates in which the coefficient was not raised since L0 did not answer.
    """

    def __init__(self, settings: TargetL0, n_updates: int, due: int, first: int = 0) -> None:
        self.settings = settings
        self.n_updates, self.due, self.first = max(1, n_updates), due, first
        self.scale = settings.start
        self.mean_l0: float | None = None
        self.n_held = 0
        self._log_scale = math.log(settings.start)
        self._n_taken = 0
        self._error = self._first_error = self._distance = self._pace = 0.0
        self._rise: _Rise | None = None
        self._has_warned = False

    def take(self, l0: float, error: float) -> None:
        """Set the scale for the next update.

        Args:
            l0: active features per token in this one.
            error: of the reconstruction.
        """
        settings = self.settings
        is_first, past = self.mean_l0 is None, settings.smoothing
        self.mean_l0 = l0 if self.mean_l0 is None else past * self.mean_l0 + (1 - past) * l0
        self._error = error if is_first else past * self._error + (1 - past) * error
        self._first_error = error if is_first else self._first_error
        distance = math.log(max(self.mean_l0, 1e-3) / settings.target)
        change = 0.0 if is_first else distance - self._distance
        self._distance = distance
        self._pace += (change - self._pace) / max(_PACE_UPDATES, _PACE_SHARE * self.n_updates)
        if self._n_taken >= self.first:
            self._steer()
        self._n_taken += 1

    def _steer(self) -> None:
        settings = self.settings
        way = max(_SHORTEST_WAY * self.n_updates, self.due - self._n_taken, 1)
        wanted = settings.gain * (self._pace + self._distance / way)
        most = min(settings.max_rise / self.n_updates, settings.max_change)
        wanted = max(-_FALL_RATE * most, min(most, wanted))
        if wanted > 0 and self._is_in_vain(way):
            wanted = 0.0
        limit = math.log(settings.max_factor)
        self._log_scale = max(-limit, min(limit, self._log_scale + wanted))
        self.scale = math.exp(self._log_scale)
        if self._log_scale == limit and self._distance > math.log(TOLERATED_RATIO):
            self._warn("max_factor does not allow more")

    def _is_in_vain(self, way: float) -> bool:
        """Whether the coefficient rose e-fold without making a difference."""
        now = _Rise(self._log_scale, self._distance, self._pace, self._error)
        rise = self._rise
        if rise is None or now.log_scale < rise.log_scale:
            rise = self._rise = now
        if now.log_scale < rise.log_scale + 1 or now.distance <= 0:
            return False
        is_worse = now.error > max(_WORSE * rise.error, _BAD * self._first_error)
        if is_worse and now.distance > rise.distance - _ANSWER:
            self.n_held += 1
            if self.n_held > _SHORTEST_WAY * self.n_updates:
                self._warn("L0 does not answer, and the reconstruction gets worse")
            return True
        slowest, fastest = _SAME_PACE
        is_late = now.pace > -_LATE * now.distance / way
        falls = rise.pace * self.n_updates < -_FALLING
        if is_late and falls and slowest <= now.pace / rise.pace <= fastest:
            return True
        self._rise = now
        return False

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "L0 is at %.1f, its target is %s. The sparsity coefficient is not raised above "
                "%.3g times its configured value: %s.",
                self.mean_l0,
                self.settings.target,
                self.scale,
                why,
            )

    def state_dict(self) -> dict[str, Any]:
        """What of it changes."""
        return {
            "scale": self.scale,
            "mean_l0": self.mean_l0,
            "n_held": self.n_held,
            "log_scale": self._log_scale,
            "n_taken": self._n_taken,
            "error": self._error,
            "first_error": self._first_error,
            "distance": self._distance,
            "pace": self._pace,
            "rise": None if self._rise is None else tuple(self._rise),
            "has_warned": self._has_warned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.scale, self.mean_l0, self.n_held = state["scale"], state["mean_l0"], state["n_held"]
        self._log_scale, self._n_taken = state["log_scale"], state["n_taken"]
        self._error, self._distance, self._pace = state["error"], state["distance"], state["pace"]
        self._rise = None if state["rise"] is None else _Rise(*state["rise"])
        self._first_error = state["first_error"]
        self._has_warned = state["has_warned"]


def is_reached(l0: float, target: float) -> bool:
    """Whether an L0 is near enough to its target not to be worth a warning."""
    return 1 / TOLERATED_RATIO <= max(l0, 1e-9) / target <= TOLERATED_RATIO
