"""The home of the base classes in 6.x: names of this package at their newer path."""

from sae_lens.saes import SAE, SAEConfig, SAEMetadata, TrainingSAE, TrainingSAEConfig
from sae_lens.saes.training import TrainCoefficientConfig, TrainStepInput, TrainStepOutput

__all__ = [
    "SAE",
    "SAEConfig",
    "SAEMetadata",
    "TrainCoefficientConfig",
    "TrainStepInput",
    "TrainStepOutput",
    "TrainingSAE",
    "TrainingSAEConfig",
]
