"""The mathematics of sparse autoencoders. Importing this package registers the architectures."""

from sae_lens.registry import (
    get_sae_class,
    get_sae_training_class,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.saes.base import SAE
from sae_lens.saes.batch_topk import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.config import SAEConfig, SAEMetadata, TrainingSAEConfig
from sae_lens.saes.gated import (
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
)
from sae_lens.saes.jumprelu import (
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
)
from sae_lens.saes.standard import (
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.saes.topk import (
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.training import TrainingSAE, TrainStepInput, TrainStepOutput

__all__ = [
    "SAE",
    "BatchTopKTrainingSAE",
    "BatchTopKTrainingSAEConfig",
    "GatedSAE",
    "GatedSAEConfig",
    "GatedTrainingSAE",
    "GatedTrainingSAEConfig",
    "JumpReLUSAE",
    "JumpReLUSAEConfig",
    "JumpReLUTrainingSAE",
    "JumpReLUTrainingSAEConfig",
    "SAEConfig",
    "SAEMetadata",
    "StandardSAE",
    "StandardSAEConfig",
    "StandardTrainingSAE",
    "StandardTrainingSAEConfig",
    "TopKSAE",
    "TopKSAEConfig",
    "TopKTrainingSAE",
    "TopKTrainingSAEConfig",
    "TrainStepInput",
    "TrainStepOutput",
    "TrainingSAE",
    "TrainingSAEConfig",
    "get_sae_class",
    "get_sae_training_class",
    "register_sae_class",
    "register_sae_training_class",
]
