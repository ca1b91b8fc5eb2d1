"""The training classes of Language-Model-SAEs (package `lm_saes`), on the SAEs of this library.

`Initializer` makes or initialises a `TrainingSAE`, `Trainer` trains it on a stream of batches, and
three pydantic models say how. What is mathematics lives in `saes` and `training`; here are the
names, defaults and formulas that differ.
"""

from sae_lens.lm_saes.adapter import LossParts, SAEAdapter, fold_dataset_norm
from sae_lens.lm_saes.config import BaseConfig, InitializerConfig, TrainerConfig, WandbConfig
from sae_lens.lm_saes.initializer import Initializer
from sae_lens.lm_saes.sae_config import SAEConfig
from sae_lens.lm_saes.trainer import Trainer

__all__ = [
    "BaseConfig",
    "Initializer",
    "InitializerConfig",
    "LossParts",
    "SAEAdapter",
    "SAEConfig",
    "Trainer",
    "TrainerConfig",
    "WandbConfig",
    "fold_dataset_norm",
]
