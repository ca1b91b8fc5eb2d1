"""Schedules as pure functions of the step: learning rates, coefficients, k, p and checkpoints.

Steps count from 0. A number of steps is given as an int, or as a float in [0, 1] that means a share
of the training; `1` and `1.0` differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LearningRateName = Literal[
    "constant",
    "constantwithwarmup",
    "linearwarmupdecay",
    "cosineannealing",
    "cosineannealingwarmup",
    "exponentialwarmup",
]
KScheduleName = Literal["linear", "exponential"]
CheckpointSpacing = Literal["log", "linear"]


def check_steps(name: str, value: int | float) -> None:
    """`ValueError` unless `value` is a number of steps or a share in [0, 1]."""
    if isinstance(value, float) and not 0.0 <= value <= 1.0:
        raise ValueError(
            f"{name} is {value}; a float is a share of all steps and must lie in [0, 1]. Give an "
            "int for a number of steps."
        )
    if value < 0:
        raise ValueError(f"{name} is {value}; a number of steps cannot be negative.")


def resolve_steps(value: int | float, total_steps: int) -> int:
    """The number of steps that an int (steps) or a float (share of `total_steps`) means."""
    return int(value * total_steps) if isinstance(value, float) else int(value)


def steps_of_setting(name: str, value: int | float, total_steps: int) -> int | float:
    """The number of steps in a setting that began as a number: a float in [0, 1] is a share.

    A whole number above 1 that came as a float stays one, as it always has been.

    Raises:
        ValueError: for a float above 1 that is no whole number, or a negative number.
    """
    if isinstance(value, float) and value > 1 and value.is_integer():
        return value
    check_steps(name, value)
    return resolve_steps(value, total_steps) if isinstance(value, float) else value


def warm_up_weight(step: int, warm_up_steps: int) -> float:
    """`min(1, step / warm_up_steps)`, 0 at the first step; 1 at once without a warm-up."""
    return 1.0 if warm_up_steps <= 0 else min(1.0, step / warm_up_steps)


def value_between(
    step: int,
    start: float,
    end: float,
    steps: int,
    first_step: int = 0,
    kind: KScheduleName = "linear",
    factor: float = 3.0,
) -> float:
    """A value on its way from `start` to `end`: `start` until `first_step`, `end` when done.

    With t the share of the `steps` done, linear: `start + (end - start) t`; exponential, fast at
    first: `start + (end - start) (1 - e^{-factor t}) / (1 - e^{-factor})`.
    """
    if step < first_step:
        return start
    share = 1.0 if steps <= 0 else min(1.0, (step - first_step) / steps)
    if kind == "exponential" and factor:
        share = math.expm1(-factor * share) / math.expm1(-factor)
    return start + (end - start) * share


def k_at_step(
    step: int,
    k: int,
    initial_k: float,
    warm_up_steps: int,
    cold_steps: int = 0,
    kind: KScheduleName = "linear",
    factor: float = 3.0,
) -> int:
    """Features per token at a step: `initial_k` for `cold_steps`, then down to `k`, rounded up."""
    if step < cold_steps:
        return int(initial_k)
    current = value_between(step, initial_k, k, warm_up_steps, cold_steps, kind, factor)
    # the rounding of the interpolation must not add a feature
    return max(k, math.ceil(current - 1e-9))


@dataclass(frozen=True)
class LearningRateFactor:
    """What the learning rate is multiplied with at a step; plain data, so schedulers can save it.

    Attributes:
        name: one of six, see `__call__`.
        total_steps: N.
        warm_up_steps: W, over which the factor rises as `(s + 1) / W`; 0 for none.
        cool_down_steps: C of "constantwithwarmup"; 0 for none.
        end_ratio: r, where the decaying schedules end.
    """

    name: str
    total_steps: int
    warm_up_steps: int = 0
    cool_down_steps: int = 0
    end_ratio: float = 0.0

    def __post_init__(self) -> None:
        names = LearningRateName.__args__  # type: ignore[attr-defined]
        if self.name not in names:
            raise ValueError(f"Unsupported scheduler: {self.name}. Choose one of {list(names)}.")
        if not 0.0 <= self.end_ratio <= 1.0:
            raise ValueError(f"lr_end_ratio is {self.end_ratio}; it must lie in [0, 1].")
        if self.name == "exponentialwarmup" and self.end_ratio == 0.0:
            raise ValueError("exponentialwarmup never reaches lr_end_ratio=0; give one above 0.")
        falls_after = ("linearwarmupdecay", "cosineannealingwarmup", "exponentialwarmup")
        if self.name in falls_after and self.warm_up_steps >= self.total_steps > 1:
            raise ValueError(
                f"{self.name} warms up for {self.warm_up_steps} of {self.total_steps} steps, which "
                "leaves none to fall in; shorten the warm-up or train for longer."
            )

    def __call__(self, step: int) -> float:
        """The factor at `step`.

        constant: 1. constantwithwarmup: warm-up, 1, linear cool-down to r over the last C steps.
        linearwarmupdecay: warm-up, then linearly to 0. cosineannealing: cosine from 1 to r.
        cosineannealingwarmup: the same after a warm-up. exponentialwarmup: warm-up, then
        `r^((s - W) / (N - W))`.
        """
        n, w, r = self.total_steps, self.warm_up_steps, self.end_ratio
        if self.name == "constant":
            return 1.0
        if self.name == "constantwithwarmup":
            factors = [1.0]
            if w > 0:
                factors.append((step + 1) / w)
            if self.cool_down_steps > 0:
                factors.append(r + (1 - r) * max(n - step, 1) / self.cool_down_steps)
            return min(factors)
        if self.name == "cosineannealing":
            w = 0
        if step < w:
            return (step + 1) / w
        share = min(1.0, (step - w) / max(n - w, 1))
        if self.name == "linearwarmupdecay":
            return 1.0 - share
        if self.name == "exponentialwarmup":
            return r**share
        return r + (1 - r) * (1 + math.cos(math.pi * share)) / 2


@dataclass
class LearningRateSchedule:
    """One of the six schedules of the learning rate, for a run of any length.

    Attributes:
        name: constant, constantwithwarmup, linearwarmupdecay, cosineannealing,
            cosineannealingwarmup or exponentialwarmup; see `LearningRateFactor`.
        warm_up_steps: steps over which the rate rises, where the name says that it does.
        cool_down_steps: last steps, in which "constantwithwarmup" falls.
        end_ratio: where the falling ones end, as a share of the learning rate.
    """

    name: LearningRateName = "constantwithwarmup"
    warm_up_steps: int | float = 0
    cool_down_steps: int | float = 0
    end_ratio: float = 1 / 32

    def __post_init__(self) -> None:
        check_steps("lr_schedule.warm_up_steps", self.warm_up_steps)
        check_steps("lr_schedule.cool_down_steps", self.cool_down_steps)
        LearningRateFactor(self.name, 1, end_ratio=self.end_ratio)
        if self.warm_up_steps and self.name in ("constant", "cosineannealing"):
            raise ValueError(
                f"lr_schedule.warm_up_steps is {self.warm_up_steps}, but {self.name} has no "
                "warm-up; choose constantwithwarmup or cosineannealingwarmup."
            )
        if self.cool_down_steps and self.name != "constantwithwarmup":
            raise ValueError(
                f"lr_schedule.cool_down_steps is {self.cool_down_steps}, but only "
                f"constantwithwarmup cools down, not {self.name}."
            )

    def factor(self, total_steps: int) -> LearningRateFactor:
        """The schedule for a training of `total_steps`.

        Raises:
            ValueError: when warm-up and cool-down are longer than that.
        """
        warm_up = resolve_steps(self.warm_up_steps, total_steps)
        cool_down = resolve_steps(self.cool_down_steps, total_steps)
        if warm_up + cool_down > total_steps:
            raise ValueError(
                f"lr_schedule: {warm_up} steps of warm-up and {cool_down} of cool-down do not fit "
                f"into {total_steps} training steps; shorten them or train for longer."
            )
        return LearningRateFactor(self.name, total_steps, warm_up, cool_down, self.end_ratio)


def checkpoint_steps(total_steps: int, n_checkpoints: int, spacing: CheckpointSpacing) -> list[int]:
    """Steps after which checkpoints are due, ascending, without repetitions, below the total.

    linear: multiples of `total // n`. log: `ceil(2^((i / n) log2(total)))` for i = 1 ... n - 1, so
    that each checkpoint has seen the same multiple of what the one before had.
    """
    if n_checkpoints <= 0 or total_steps <= 1:
        return []
    if spacing == "linear":
        stride = max(total_steps // n_checkpoints, 1)
        return list(range(stride, total_steps, stride))
    exponents = (i / n_checkpoints * math.log2(total_steps) for i in range(1, n_checkpoints))
    # a power of two that came out a little too large must not be rounded up
    return sorted({math.ceil(2**e - 1e-9) for e in exponents})
