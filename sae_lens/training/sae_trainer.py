"""The trainer under the path it has always had."""

from sae_lens._version import __version__
from sae_lens.training.trainer import (
    FINETUNING_PARAMETERS,
    SAETrainer,
    SaveCheckpointFn,
    TrainSAEOutput,
    _log_feature_sparsity,
    _unwrap_item,
    _update_sae_lens_training_version,
)

__all__ = [
    "FINETUNING_PARAMETERS",
    "SAETrainer",
    "SaveCheckpointFn",
    "TrainSAEOutput",
    "__version__",
    "_log_feature_sparsity",
    "_unwrap_item",
    "_update_sae_lens_training_version",
]
