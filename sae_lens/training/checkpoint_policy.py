"""When a checkpoint is due besides the planned ones: after some minutes, or for a best result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BEST_MODES = ("max", "min")


@dataclass
class CheckpointPolicy:
    """Decides about checkpoints by the clock and by the results of evaluations.

    Attributes:
        every_minutes: a checkpoint after so many minutes without one; None for none.
        best_metric: the metric whose best value is kept, "group/name"; None for none.
        best_mode: whether "max" or "min" of it is best.
        best_value: the best so far; None before the first evaluation.
    """

    every_minutes: float | None = None
    best_metric: str | None = None
    best_mode: str = "max"
    best_value: float | None = None
    _since: float = field(default_factory=time.monotonic)
    _is_best: bool = False

    @classmethod
    def from_config(cls, cfg: Any) -> CheckpointPolicy:
        """The policy that a run's config asks for; without such fields there are no extras."""
        return cls(
            every_minutes=getattr(cfg, "checkpoint_every_minutes", None),
            best_metric=getattr(cfg, "keep_best_metric", None),
            best_mode=getattr(cfg, "keep_best_mode", "max"),
        )

    def start_clock(self) -> None:
        """Count the minutes from now."""
        self._since = time.monotonic()

    def is_time(self) -> bool:
        """Whether the minutes are over."""
        return (
            self.every_minutes is not None
            and time.monotonic() - self._since >= 60 * self.every_minutes
        )

    def take_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Note whether an evaluation is the best so far.

        Raises:
            ValueError: when it has no number of the metric's name, with the names that it has.
        """
        if self.best_metric is None:
            return
        values = flat_numbers(metrics)
        if self.best_metric not in values:
            raise ValueError(
                f"keep_best_metric is {self.best_metric!r}, but the evaluation gives only "
                f"{', '.join(sorted(values))}."
            )
        value = values[self.best_metric]
        if math.isfinite(value) and (self.best_value is None or self._is_better(value)):
            self.best_value, self._is_best = value, True

    def take_best(self) -> bool:
        """Whether there was a best evaluation since this was last asked."""
        was_best, self._is_best = self._is_best, False
        return was_best

    def _is_better(self, value: float) -> bool:
        assert self.best_value is not None
        return value > self.best_value if self.best_mode == "max" else value < self.best_value


def flat_numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested groups of metrics, by "group/name"."""
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[prefix + name] = float(value)
    return numbers
