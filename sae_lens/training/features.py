"""What a training run may do besides the usual: each a small config of its own, off by default.

A run's config holds them as `features=`, a `TrainingFeatures` or the dict of one; a `Trainer` of
`sae_lens.lm_saes` takes the same. Steps are ints, or floats in [0, 1] that mean a share of the
training. Each part's config stands beside what it does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sae_lens.training.dead_feature_terms import AuxK
from sae_lens.training.initialization import InitialWeights
from sae_lens.training.loss_schedules import CheckpointSpacing, LearningRateSchedule
from sae_lens.training.optim import OptimizerChoice
from sae_lens.training.resampling import Resampling
from sae_lens.training.scheduled_settings import (
    KSchedule,
    PSchedule,
    WeightSchedule,
    check_weight_names,
)
from sae_lens.training.target_l0 import TargetL0
from sae_lens.training.weight_average import WeightAverage
from sae_lens.whitening import DEFAULT_SHRINKAGE


@dataclass
class NormFilter:
    """Leaves out activations that are much longer than the others, such as attention sinks.

    Lengths are those of raw activations (of its input for a transcoder). Their median is taken from
    the first data, before training, and kept, so that evaluations can leave out the same ones: it
    is part of the SAE's metadata.

    Attributes:
        multiple: activations longer than this many times the median norm are left out.
    """

    multiple: float = 10.0

    def __post_init__(self) -> None:
        if not self.multiple > 1:
            raise ValueError(f"norm_filter.multiple is {self.multiple}; it must be above 1.")


_PARTS: dict[str, type[Any]] = {
    "lr_schedule": LearningRateSchedule,
    "k_schedule": KSchedule,
    "p_schedule": PSchedule,
    "target_l0": TargetL0,
    "aux_k": AuxK,
    "resampling": Resampling,
    "weight_average": WeightAverage,
    "initial_weights": InitialWeights,
    "norm_filter": NormFilter,
    "optimizer": OptimizerChoice,
}


@dataclass
class TrainingFeatures:
    """All of them; None or the default value turns one off.

    Attributes:
        lr_schedule: one of six schedules of the learning rate, instead of the config's own.
        jumprelu_lr_factor: learning rate of thresholds as a multiple of the others'.
        k_schedule: k falls while training.
        p_schedule: the sparsity norm changes while training.
        weight_schedules: weights in the loss change while training, by name: "sparsity",
            "auxiliary", "pre_act".
        target_l0: the sparsity coefficient is steered.
        aux_k: dead features model the residual, for any activation function.
        ghost_gradients: dead features learn through ghost gradients, for any architecture.
        resampling: dead features start anew.
        dead_after_tokens: tokens of silence after which a feature is dead, instead of the config's
            dead_feature_window, which counts steps.
        weight_average: the result is an average over steps.
        initial_weights: first weights by other rules.
        norm_filter: overlong activations are left out.
        optimizer: another one than Adam.
        gradient_accumulation_steps: batches for each step of the optimiser.
        max_gradient_norm: gradients are scaled down to it; None for no clipping.
        checkpoint_spacing: "linear" or "log".
        whitening_shrinkage: how far the covariance is shrunk towards a multiple of the identity
            under normalize_activations="whitening", from 0 to 1.
    """

    lr_schedule: LearningRateSchedule | None = None
    jumprelu_lr_factor: float = 1.0
    k_schedule: KSchedule | None = None
    p_schedule: PSchedule | None = None
    weight_schedules: dict[str, WeightSchedule] = field(default_factory=dict)
    target_l0: TargetL0 | None = None
    aux_k: AuxK | None = None
    ghost_gradients: bool = False
    resampling: Resampling | None = None
    dead_after_tokens: int | None = None
    weight_average: WeightAverage | None = None
    initial_weights: InitialWeights | None = None
    norm_filter: NormFilter | None = None
    optimizer: OptimizerChoice | None = None
    gradient_accumulation_steps: int = 1
    max_gradient_norm: float | None = 1.0
    checkpoint_spacing: CheckpointSpacing = "linear"
    whitening_shrinkage: float = DEFAULT_SHRINKAGE

    def __post_init__(self) -> None:
        for name, part in _PARTS.items():
            setattr(self, name, _part(part, getattr(self, name), f"features.{name}"))
        if self.target_l0 is not None and "sparsity" in self.weight_schedules:
            raise ValueError(
                "target_l0 and weight_schedules['sparsity'] both move the sparsity coefficient; "
                "the first would undo the second. Give one of them."
            )
        check_weight_names(self.weight_schedules)
        self.weight_schedules = {
            name: _part(WeightSchedule, value, f"features.weight_schedules[{name!r}]")
            for name, value in self.weight_schedules.items()
        }
        if self.checkpoint_spacing not in ("linear", "log"):
            raise ValueError(
                f"checkpoint_spacing is {self.checkpoint_spacing!r}; allowed are linear, log."
            )
        if self.gradient_accumulation_steps < 1:
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}; it must be at "
                "least 1."
            )
        if not 0 <= self.whitening_shrinkage <= 1:
            raise ValueError(
                f"whitening_shrinkage is {self.whitening_shrinkage}; it must lie in [0, 1]."
            )
        above_zero = ("jumprelu_lr_factor", "max_gradient_norm", "dead_after_tokens")
        for name in above_zero:
            value = getattr(self, name)
            if value is not None and not value > 0:
                none = "" if name == "jumprelu_lr_factor" else ", or None"
                raise ValueError(f"{name} is {value}; it must be above 0{none}.")

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


def _part(cls: type[Any], value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return _from_dict(cls, value, where)
    if value is not None and not isinstance(value, cls):
        raise TypeError(f"{where} must be a {cls.__name__}, not {value!r}.")
    return value


def _from_dict(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    names = [f.name for f in fields(cls)]
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise ValueError(f"{where} has no {', '.join(unknown)}; it has {', '.join(names)}.")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{where} is incomplete: {error}.") from error


__all__ = [
    "AuxK",
    "InitialWeights",
    "KSchedule",
    "LearningRateSchedule",
    "NormFilter",
    "OptimizerChoice",
    "PSchedule",
    "Resampling",
    "TargetL0",
    "TrainingFeatures",
    "WeightAverage",
    "WeightSchedule",
    "features_as_dict",
]
