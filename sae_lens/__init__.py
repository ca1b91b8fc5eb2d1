"""Sparse autoencoders on the activations of language models: train, load, analyse.

The names below are looked up on first use, so that ``import sae_lens`` loads neither torch nor
TransformerLens, touches no network and writes no file.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sae_lens._version import __version__

if TYPE_CHECKING:
    from sae_lens.activations.store import ActivationsStore
    from sae_lens.analysis.hooked_sae_transformer import HookedSAETransformer
    from sae_lens.cache_activations_runner import CacheActivationsRunner
    from sae_lens.config import (
        CacheActivationsRunnerConfig,
        LanguageModelSAERunnerConfig,
        LoggingConfig,
        MultiSAETrainingRunnerConfig,
        PretokenizeRunnerConfig,
        SAETrainerConfig,
    )
    from sae_lens.evals import run_evals
    from sae_lens.loading.pretrained_sae_loaders import (
        PretrainedSaeDiskLoader,
        PretrainedSaeHuggingfaceLoader,
    )
    from sae_lens.loading.publish import upload_saes_to_huggingface
    from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner
    from sae_lens.pretokenize_runner import PretokenizeRunner, pretokenize_runner
    from sae_lens.sae_training_runner import LanguageModelSAETrainingRunner, SAETrainingRunner
    from sae_lens.saes import (
        SAE,
        AbsTopKSAE,
        AbsTopKSAEConfig,
        AbsTopKTrainingSAE,
        AbsTopKTrainingSAEConfig,
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        GatedSAE,
        GatedSAEConfig,
        GatedTrainingSAE,
        GatedTrainingSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        JumpReLUSkipTranscoder,
        JumpReLUSkipTranscoderConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
        MatchingPursuitSAE,
        MatchingPursuitSAEConfig,
        MatchingPursuitTrainingSAE,
        MatchingPursuitTrainingSAEConfig,
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        SAEConfig,
        SAEMetadata,
        SkipTranscoder,
        SkipTranscoderConfig,
        StandardSAE,
        StandardSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TemporalSAE,
        TemporalSAEConfig,
        TopKSAE,
        TopKSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
        TrainingSAE,
        TrainingSAEConfig,
        TrainStepInput,
        TrainStepOutput,
        Transcoder,
        TranscoderConfig,
        get_sae_class,
        get_sae_training_class,
        register_sae_class,
        register_sae_training_class,
    )
    from sae_lens.training.trainer import SAETrainer

logger = logging.getLogger("sae_lens")

__all__ = [
    "SAE",
    "AbsTopKSAE",
    "AbsTopKSAEConfig",
    "AbsTopKTrainingSAE",
    "AbsTopKTrainingSAEConfig",
    "ActivationsStore",
    "BatchTopKTrainingSAE",
    "BatchTopKTrainingSAEConfig",
    "CacheActivationsRunner",
    "CacheActivationsRunnerConfig",
    "GatedSAE",
    "GatedSAEConfig",
    "GatedTrainingSAE",
    "GatedTrainingSAEConfig",
    "HookedSAETransformer",
    "JumpReLUSAE",
    "JumpReLUSAEConfig",
    "JumpReLUSkipTranscoder",
    "JumpReLUSkipTranscoderConfig",
    "JumpReLUTrainingSAE",
    "JumpReLUTrainingSAEConfig",
    "JumpReLUTranscoder",
    "JumpReLUTranscoderConfig",
    "LanguageModelSAERunnerConfig",
    "LanguageModelSAETrainingRunner",
    "LoggingConfig",
    "MatchingPursuitSAE",
    "MatchingPursuitSAEConfig",
    "MatchingPursuitTrainingSAE",
    "MatchingPursuitTrainingSAEConfig",
    "MatryoshkaBatchTopKTrainingSAE",
    "MatryoshkaBatchTopKTrainingSAEConfig",
    "MultiSAETrainingRunner",
    "MultiSAETrainingRunnerConfig",
    "PretokenizeRunner",
    "PretokenizeRunnerConfig",
    "PretrainedSaeDiskLoader",
    "PretrainedSaeHuggingfaceLoader",
    "SAEConfig",
    "SAEMetadata",
    "SAETrainer",
    "SAETrainerConfig",
    "SAETrainingRunner",
    "SkipTranscoder",
    "SkipTranscoderConfig",
    "StandardSAE",
    "StandardSAEConfig",
    "StandardTrainingSAE",
    "StandardTrainingSAEConfig",
    "TemporalSAE",
    "TemporalSAEConfig",
    "TopKSAE",
    "TopKSAEConfig",
    "TopKTrainingSAE",
    "TopKTrainingSAEConfig",
    "TrainStepInput",
    "TrainStepOutput",
    "TrainingSAE",
    "TrainingSAEConfig",
    "Transcoder",
    "TranscoderConfig",
    "__version__",
    "get_sae_class",
    "get_sae_training_class",
    "logger",
    "pretokenize_runner",
    "register_sae_class",
    "register_sae_training_class",
    "run_evals",
    "upload_saes_to_huggingface",
]

# Where names live that are not in `saes`. (The registry's functions are looked up there too, since
# importing it is what registers the architectures.)
_HOMES = {
    "ActivationsStore": "sae_lens.activations.store",
    "CacheActivationsRunner": "sae_lens.cache_activations_runner",
    "CacheActivationsRunnerConfig": "sae_lens.config",
    "HookedSAETransformer": "sae_lens.analysis.hooked_sae_transformer",
    "LanguageModelSAERunnerConfig": "sae_lens.config",
    "LanguageModelSAETrainingRunner": "sae_lens.sae_training_runner",
    "LoggingConfig": "sae_lens.config",
    "MultiSAETrainingRunner": "sae_lens.multi_sae_training_runner",
    "MultiSAETrainingRunnerConfig": "sae_lens.config",
    "PretokenizeRunner": "sae_lens.pretokenize_runner",
    "PretokenizeRunnerConfig": "sae_lens.config",
    "PretrainedSaeDiskLoader": "sae_lens.loading.pretrained_sae_loaders",
    "PretrainedSaeHuggingfaceLoader": "sae_lens.loading.pretrained_sae_loaders",
    "SAETrainer": "sae_lens.training.trainer",
    "SAETrainerConfig": "sae_lens.config",
    "SAETrainingRunner": "sae_lens.sae_training_runner",
    "pretokenize_runner": "sae_lens.pretokenize_runner",
    "run_evals": "sae_lens.evals",
    "upload_saes_to_huggingface": "sae_lens.loading.publish",
}

# Names from before version 3: they work, warn, and stay out of `__all__`.
_EARLY_NAMES = {
    "LMSparseAutoencoderSessionloader": "sae_lens.training.session_loader",
    "SparseAutoencoder": "sae_lens.training.sparse_autoencoder",
    "SparseAutoencoderDictionary": "sae_lens.training.sae_group",
    "language_model_sae_runner": "sae_lens.training.lm_runner",
    "train_sae_group_on_language_model": "sae_lens.training.sae_group",
}


def __getattr__(name: str) -> Any:
    if name in _EARLY_NAMES:
        home = _EARLY_NAMES[name]
    elif name in __all__:
        home = _HOMES.get(name, "sae_lens.saes")
    else:
        raise AttributeError(f"module 'sae_lens' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Root(ModuleType):
    """The type of this module, for the one name that is a function here and a submodule below.

    After loading ``sae_lens.pretokenize_runner`` the import system binds that module to the
    package under the name of the function. Binding the function eagerly would also help, at the
    price of loading torch and TransformerLens with every ``import sae_lens``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pretokenize_runner" and isinstance(value, ModuleType):
            value = value.pretokenize_runner
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root
