"""The mathematics of sparse autoencoders. Importing this package registers the architectures."""

from sae_lens.registry import (
    get_sae_class,
    get_sae_training_class,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.saes.abs_topk import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
)
from sae_lens.saes.base import SAE
from sae_lens.saes.batch_topk import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.config import SAEConfig, SAEMetadata, TrainingSAEConfig
from sae_lens.saes.crosscoder import (
    Crosscoder,
    CrosscoderConfig,
    JumpReLUCrosscoder,
    JumpReLUCrosscoderConfig,
    TopKCrosscoder,
    TopKCrosscoderConfig,
)
from sae_lens.saes.crosscoder_training import (
    BatchTopKCrosscoderTrainingConfig,
    BatchTopKCrosscoderTrainingSAE,
    CrosscoderTrainingConfig,
    CrosscoderTrainingSAE,
    JumpReLUCrosscoderTrainingConfig,
    JumpReLUCrosscoderTrainingSAE,
    TopKCrosscoderTrainingConfig,
    TopKCrosscoderTrainingSAE,
)
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
from sae_lens.saes.jumprelu_transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
)
from sae_lens.saes.matching_pursuit import (
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
)
from sae_lens.saes.matryoshka_batch_topk import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.standard import (
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.saes.temporal import TemporalSAE, TemporalSAEConfig
from sae_lens.saes.topk import (
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.training import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.transcoder import (
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from sae_lens.saes.transcoder_training import (
    BatchTopKSkipTranscoderTrainingConfig,
    BatchTopKSkipTranscoderTrainingSAE,
    BatchTopKTranscoderTrainingConfig,
    BatchTopKTranscoderTrainingSAE,
    JumpReLUSkipTranscoderTrainingConfig,
    JumpReLUSkipTranscoderTrainingSAE,
    JumpReLUTranscoderTrainingConfig,
    JumpReLUTranscoderTrainingSAE,
    SkipTranscoderTrainingConfig,
    SkipTranscoderTrainingSAE,
    TopKSkipTranscoderTrainingConfig,
    TopKSkipTranscoderTrainingSAE,
    TopKTranscoderTrainingConfig,
    TopKTranscoderTrainingSAE,
    TranscoderTrainingConfig,
    TranscoderTrainingSAE,
)

__all__ = [
    "AbsTopKSAE",
    "AbsTopKSAEConfig",
    "AbsTopKTrainingSAE",
    "AbsTopKTrainingSAEConfig",
    "BatchTopKCrosscoderTrainingConfig",
    "BatchTopKCrosscoderTrainingSAE",
    "BatchTopKSkipTranscoderTrainingConfig",
    "BatchTopKSkipTranscoderTrainingSAE",
    "BatchTopKTrainingSAE",
    "BatchTopKTrainingSAEConfig",
    "BatchTopKTranscoderTrainingConfig",
    "BatchTopKTranscoderTrainingSAE",
    "Crosscoder",
    "CrosscoderConfig",
    "CrosscoderTrainingConfig",
    "CrosscoderTrainingSAE",
    "GatedSAE",
    "GatedSAEConfig",
    "GatedTrainingSAE",
    "GatedTrainingSAEConfig",
    "JumpReLUCrosscoder",
    "JumpReLUCrosscoderConfig",
    "JumpReLUCrosscoderTrainingConfig",
    "JumpReLUCrosscoderTrainingSAE",
    "JumpReLUSAE",
    "JumpReLUSAEConfig",
    "JumpReLUSkipTranscoder",
    "JumpReLUSkipTranscoderConfig",
    "JumpReLUSkipTranscoderTrainingConfig",
    "JumpReLUSkipTranscoderTrainingSAE",
    "JumpReLUTrainingSAE",
    "JumpReLUTrainingSAEConfig",
    "JumpReLUTranscoder",
    "JumpReLUTranscoderConfig",
    "JumpReLUTranscoderTrainingConfig",
    "JumpReLUTranscoderTrainingSAE",
    "MatchingPursuitSAE",
    "MatchingPursuitSAEConfig",
    "MatchingPursuitTrainingSAE",
    "MatchingPursuitTrainingSAEConfig",
    "MatryoshkaBatchTopKTrainingSAE",
    "MatryoshkaBatchTopKTrainingSAEConfig",
    "SAE",
    "SAEConfig",
    "SAEMetadata",
    "SkipTranscoder",
    "SkipTranscoderConfig",
    "SkipTranscoderTrainingConfig",
    "SkipTranscoderTrainingSAE",
    "StandardSAE",
    "StandardSAEConfig",
    "StandardTrainingSAE",
    "StandardTrainingSAEConfig",
    "TemporalSAE",
    "TemporalSAEConfig",
    "TopKCrosscoder",
    "TopKCrosscoderConfig",
    "TopKCrosscoderTrainingConfig",
    "TopKCrosscoderTrainingSAE",
    "TopKSAE",
    "TopKSAEConfig",
    "TopKSkipTranscoderTrainingConfig",
    "TopKSkipTranscoderTrainingSAE",
    "TopKTrainingSAE",
    "TopKTrainingSAEConfig",
    "TopKTranscoderTrainingConfig",
    "TopKTranscoderTrainingSAE",
    "TrainStepInput",
    "TrainStepOutput",
    "TrainingSAE",
    "TrainingSAEConfig",
    "Transcoder",
    "TranscoderConfig",
    "TranscoderTrainingConfig",
    "TranscoderTrainingSAE",
    "get_sae_class",
    "get_sae_training_class",
    "register_sae_class",
    "register_sae_training_class",
]
