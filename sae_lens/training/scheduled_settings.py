"""Settings of an SAE that change while it trains: k, the sparsity norm's p, weights in the loss.

Steps are ints, or floats in [0, 1] that mean a share of the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sae_lens.training.loss_schedules import (
    KScheduleName,
    check_steps,
    k_at_step,
    resolve_steps,
    value_between,
)

WeightName = Literal["sparsity", "auxiliary", "pre_act"]

# Weights that an SAE's config holds, and the field in which it does. The sparsity coefficient comes
# from the run's config or the SAE's, and has a schedule of its own that this one multiplies.
_FIELDS = {"auxiliary": "aux_loss_coefficient", "pre_act": "pre_act_loss_coefficient"}


@dataclass
class KSchedule:
    """k falls to that of the SAE's config (topk family).

    Attributes:
        initial_k: where it starts.
        steps: length of the way.
        cold_steps: steps at `initial_k` before it.
        kind: "linear" or "exponential" (fast at first).
        factor: how fast the exponential one is.
    """

    initial_k: float
    steps: int | float = 0.1
    cold_steps: int | float = 0
    kind: KScheduleName = "linear"
    factor: float = 3.0

    def __post_init__(self) -> None:
        check_steps("k_schedule.steps", self.steps)
        check_steps("k_schedule.cold_steps", self.cold_steps)
        _check_kind("k_schedule", self.kind)


@dataclass
class PSchedule:
    """The p of the sparsity loss "power" changes while training.

    From 1 towards 0 the p-norm's term comes closer and closer to L0 (Karvonen et al. 2024,
    arXiv:2408.00113).

    Attributes:
        end: where p ends; it starts at `lp_norm` of the SAE's config.
        first_step: when it begins to change.
        steps: length of the way; to the end of the training when None.
    """

    end: float = 0.2
    first_step: int | float = 0
    steps: int | float | None = None

    def __post_init__(self) -> None:
        check_steps("p_schedule.first_step", self.first_step)
        if self.steps is not None:
            check_steps("p_schedule.steps", self.steps)
        if self.end <= 0:
            raise ValueError(f"p_schedule.end is {self.end}; p must stay above 0.")


@dataclass
class WeightSchedule:
    """A weight in the loss moves from `start` to `end` times its configured value.

    Attributes:
        start: multiple at first.
        end: multiple at last.
        first_step: when it begins to change.
        steps: length of the way; to the end of the training when None.
        kind: "linear" or "exponential" (fast at first).
        factor: how fast the exponential one is.
    """

    start: float = 0.0
    end: float = 1.0
    first_step: int | float = 0
    steps: int | float | None = None
    kind: KScheduleName = "linear"
    factor: float = 3.0

    def __post_init__(self) -> None:
        check_steps("weight_schedules.first_step", self.first_step)
        if self.steps is not None:
            check_steps("weight_schedules.steps", self.steps)
        _check_kind("weight_schedules", self.kind)
        if self.start < 0 or self.end < 0:
            raise ValueError(
                f"weight_schedules: from {self.start} to {self.end} times the configured weight; "
                "neither may be below 0."
            )


def check_weight_names(names: Any) -> None:
    """`ValueError` for a name that no weight has."""
    unknown = sorted(set(names) - set(get_args(WeightName)))
    if unknown:
        raise ValueError(
            f"weight_schedules names {', '.join(unknown)}; there are "
            f"{', '.join(get_args(WeightName))}."
        )


class ScheduledSettings:
    """Sets what depends on the step, before each step.

    Args:
        features: the run's `TrainingFeatures`.
        sae: the SAE that is trained.
        total_steps: of the run.
        held: the configured p and weights by name, where they are not in the SAE's config; None or
            0 stands for a term that there is not. They are not written anywhere then.

    Raises:
        ValueError: when a schedule does not go with the SAE, or not with the run's length.

    Attributes:
        starts: the settings as they were configured.
        current_p: p at present; None without a schedule.
        multiples: what each scheduled weight is multiplied with at present.
    """

    def __init__(
        self,
        features: Any,
        sae: Any,
        total_steps: int,
        held: Mapping[str, float | None] | None = None,
    ) -> None:
        self.k: KSchedule | None = features.k_schedule
        self.p: PSchedule | None = features.p_schedule
        self.weights: dict[str, WeightSchedule] = features.weight_schedules
        self.total_steps = total_steps
        self.current_p: float | None = None
        self.multiples: dict[str, float] = {}
        self.starts: dict[str, float] = {}
        self._writes = held is None
        self._written = self.weights.keys() & _FIELDS.keys() if self._writes else set()
        if features.aux_k is not None:
            self._written = self._written - {"auxiliary"}
        self._take_k(sae)
        self._take_p(sae, held)
        held = _weights_of(sae, features) if held is None else held
        for name in self.weights:
            self._take_weight(name, held.get(name), sae.cfg.architecture)

    def before_step(self, sae: Any, step: int) -> None:
        """Set k, p and the weights to their values at `step`."""
        if self.k is not None:
            sae.activation_fn.k = k_at_step(
                step,
                int(self.starts["k"]),
                self.k.initial_k,
                resolve_steps(self.k.steps, self.total_steps),
                resolve_steps(self.k.cold_steps, self.total_steps),
                self.k.kind,
                self.k.factor,
            )
        if self.p is not None:
            first, steps = self._way(self.p)
            self.current_p = value_between(step, self.starts["p"], self.p.end, steps, first)
            if self._writes:
                sae.cfg.lp_norm = self.current_p
        for name, schedule in self.weights.items():
            self.multiples[name] = self._multiple(schedule, step)
            if name in self._written:
                setattr(sae.cfg, _FIELDS[name], self.starts[name] * self.multiples[name])

    def multiple(self, name: WeightName) -> float:
        """What a weight is multiplied with at present."""
        return self.multiples.get(name, 1.0)

    def finish(self, sae: Any) -> None:
        """Leave the configured weights in the SAE's config. p stays where it ended."""
        for name in self._written:
            setattr(sae.cfg, _FIELDS[name], self.starts[name])

    def _multiple(self, schedule: WeightSchedule, step: int) -> float:
        first, steps = self._way(schedule)
        return value_between(
            step, schedule.start, schedule.end, steps, first, schedule.kind, schedule.factor
        )

    def _way(self, schedule: PSchedule | WeightSchedule) -> tuple[int, int]:
        """First step and number of steps."""
        first = resolve_steps(schedule.first_step, self.total_steps)
        if schedule.steps is None:
            return first, max(self.total_steps - first, 0)
        return first, resolve_steps(schedule.steps, self.total_steps)

    # -- what goes with the SAE and the run -------------------------------------------------------

    def _take_k(self, sae: Any) -> None:
        schedule = self.k
        if schedule is None:
            return
        if getattr(sae.activation_fn, "k", None) is None:
            raise ValueError(
                f"k_schedule is for SAEs that select k features; {sae.cfg.architecture!r} does not."
            )
        k = int(sae.cfg.activation_fn_kwargs["k"])
        if not k <= schedule.initial_k <= sae.cfg.d_sae:
            raise ValueError(
                f"k_schedule.initial_k is {schedule.initial_k}; it must lie between the SAE's k, "
                f"{k}, and its number of features, {sae.cfg.d_sae}."
            )
        cold = resolve_steps(schedule.cold_steps, self.total_steps)
        steps = resolve_steps(schedule.steps, self.total_steps)
        self._check_fits("k_schedule", "cold_steps", cold, steps)
        self.starts["k"] = k

    def _take_p(self, sae: Any, held: Mapping[str, float | None] | None) -> None:
        if self.p is None:
            return
        if held is None:
            term = sae.sparsity_term()
            start = None if term is None or term.kind != "power" else term.p
        else:
            start = held.get("p")
        if start is None:
            raise ValueError(
                "p_schedule needs a sparsity loss 'power', the only one that has a p: that of "
                f"standard SAEs, say. This {sae.cfg.architecture!r} SAE's is another. Leave the "
                "schedule out."
            )
        self._check_fits("p_schedule", "first_step", *self._way(self.p))
        self.starts["p"] = float(start)

    def _take_weight(self, name: str, value: float | None, architecture: str) -> None:
        where = f"weight_schedules[{name!r}]"
        self._check_fits(where, "first_step", *self._way(self.weights[name]))
        if not value:
            raise ValueError(
                f"{where}: there is nothing to scale, since the loss of this {architecture!r} SAE "
                f"has no such term, or its weight is {value}. Set it, or leave the schedule out."
            )
        self.starts[name] = float(value)

    def _check_fits(self, what: str, begin_field: str, begin: int, steps: int) -> None:
        if begin + steps > self.total_steps:
            raise ValueError(
                f"{what} begins to change at step {begin} ({begin_field}) and takes {steps} steps, "
                f"but the training has only {self.total_steps}; shorten it or train for longer."
            )


def _weights_of(sae: Any, features: Any) -> dict[str, float | None]:
    """The weights in an SAE's loss by name; the features' aux-k counts as its auxiliary term."""
    coefficients = [coefficient.value for coefficient in sae.get_coefficients().values()]
    weights: dict[str, float | None] = {"sparsity": max(coefficients, default=None)}
    weights |= {name: getattr(sae.cfg, field, None) for name, field in _FIELDS.items()}
    if features.aux_k is not None:
        weights["auxiliary"] = features.aux_k.coefficient
    return weights


def _check_kind(where: str, kind: str) -> None:
    if kind not in get_args(KScheduleName):
        raise ValueError(
            f"{where}.kind is {kind!r}; allowed are {', '.join(get_args(KScheduleName))}."
        )
