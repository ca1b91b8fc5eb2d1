"""What a training run may do besides the usual: each a small config of its own, off by default.

A run's config holds them as `features=`, a `TrainingFeatures` or the dict of one. Steps are ints,
or floats in [0, 1] that mean a share of the training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from sae_lens.training.loss_schedules import CheckpointSpacing, KScheduleName, check_steps


@dataclass
class KSchedule:
    """k falls to that of the SAE's config (topk family).

    A large k at first lets every feature learn; cf. Gao et al. 2024 (arXiv:2406.04093), A.1.

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
        _check_choice("k_schedule.kind", self.kind, ("linear", "exponential"))


@dataclass
class PSchedule:
    """The p of a standard SAE's sparsity norm changes while training.

    Karvonen et al. 2024, "Measuring Progress in Dictionary Learning" (arXiv:2408.00113), section 4:
    p from 1 towards 0 comes closer and closer to L0.

    Attributes:
        end: where p ends; it starts at `lp_norm` of the SAE's config.
        first_step: when it begins to change.
        steps: length of the way.
    """

    end: float = 0.2
    first_step: int | float = 0
    steps: int | float = 1.0

    def __post_init__(self) -> None:
        check_steps("p_schedule.first_step", self.first_step)
        check_steps("p_schedule.steps", self.steps)
        if self.end <= 0:
            raise ValueError(f"p_schedule.end is {self.end}; p must stay above 0.")


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
        if self.target <= 0 or self.rate <= 0 or self.damping < 0 or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"target_l0 is {self}; target and rate must be above 0, damping at least "
                "0, smoothing in [0, 1)."
            )


@dataclass
class WeightAverage:
    """The trained SAE is an exponential moving average of the weights.

    Attributes:
        decay: share of the past.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"weight_average.decay is {self.decay}; it must lie in [0, 1).")


@dataclass
class Resampling:
    """Dead features start anew at activations that are reconstructed badly.

    Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron resampling": direction of an
    activation drawn with probability proportional to its squared loss, an encoder of a fifth of the
    others' mean norm, bias 0, and fresh moments of the optimiser.

    Attributes:
        every: steps between two resamplings.
        until: no resampling after that step.
        encoder_norm: norm of the new encoder as a share of the mean of the living.
    """

    every: int
    until: int | float = 0.5
    encoder_norm: float = 0.2

    def __post_init__(self) -> None:
        check_steps("resampling.until", self.until)
        if self.every < 1:
            raise ValueError(f"resampling.every is {self.every}; it must be at least 1.")


@dataclass
class NormFilter:
    """Leaves out activations that are much longer than the others, such as attention sinks.

    Attributes:
        multiple: activations longer than this many times the batch's median norm are left out.
    """

    multiple: float = 10.0

    def __post_init__(self) -> None:
        if self.multiple <= 1:
            raise ValueError(f"norm_filter.multiple is {self.multiple}; it must be above 1.")


@dataclass
class OptimizerChoice:
    """Another optimiser than Adam.

    Attributes:
        path: where to import it from, as in "torch.optim.AdamW" or "bitsandbytes.optim.Adam8bit".
        options: keyword arguments besides lr and betas.
    """

    path: str
    options: dict[str, Any] | None = None


_PARTS = {
    "k_schedule": KSchedule,
    "p_schedule": PSchedule,
    "target_l0": TargetL0,
    "weight_average": WeightAverage,
    "resampling": Resampling,
    "norm_filter": NormFilter,
    "optimizer": OptimizerChoice,
}


@dataclass
class TrainingFeatures:
    """All of them; None or the default value turns one off.

    Attributes:
        k_schedule: k falls while training.
        p_schedule: the sparsity norm changes while training.
        target_l0: the sparsity coefficient is steered.
        weight_average: the result is an average over steps.
        resampling: dead features start anew.
        norm_filter: overlong activations are left out.
        optimizer: another one than Adam.
        gradient_accumulation_steps: batches for each step of the optimiser.
        max_gradient_norm: gradients are scaled down to it; None for no clipping.
        checkpoint_spacing: "linear" or "log".
    """

    k_schedule: KSchedule | None = None
    p_schedule: PSchedule | None = None
    target_l0: TargetL0 | None = None
    weight_average: WeightAverage | None = None
    resampling: Resampling | None = None
    norm_filter: NormFilter | None = None
    optimizer: OptimizerChoice | None = None
    gradient_accumulation_steps: int = 1
    max_gradient_norm: float | None = 1.0
    checkpoint_spacing: CheckpointSpacing = "linear"

    def __post_init__(self) -> None:
        for name, part in _PARTS.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, _from_dict(part, value, f"features.{name}"))
            elif value is not None and not isinstance(value, part):
                raise TypeError(f"features.{name} must be a {part.__name__}, not {value!r}.")
        _check_choice("checkpoint_spacing", self.checkpoint_spacing, ("linear", "log"))
        if self.gradient_accumulation_steps < 1:
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}; it must be at "
                "least 1."
            )
        if self.max_gradient_norm is not None and self.max_gradient_norm <= 0:
            raise ValueError(
                f"max_gradient_norm is {self.max_gradient_norm}; it must be above 0, or None."
            )

    @classmethod
    def of(cls, value: TrainingFeatures | dict[str, Any] | None) -> TrainingFeatures:
        """The features in a config's field.

        Raises:
            ValueError: for an unknown name, or settings that make no sense.
        """
        if isinstance(value, TrainingFeatures):
            return value
        return _from_dict(cls, value or {}, "features")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which `of` makes an equal object."""
        return asdict(self)


def features_as_dict(value: TrainingFeatures | dict[str, Any] | None) -> dict[str, Any] | None:
    """What a config keeps of its `features`: checked, as plain data; None stays None."""
    return None if value is None else TrainingFeatures.of(value).to_dict()


def _from_dict(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    names = [f.name for f in fields(cls)]
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise ValueError(f"{where} has no {', '.join(unknown)}; it has {', '.join(names)}.")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{where} is incomplete: {error}.") from error


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}.")
