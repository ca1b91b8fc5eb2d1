"""Configs of runs, and the names that have always been found beside them."""

from sae_lens._version import __version__
from sae_lens.config.cache_activations import CacheActivationsRunnerConfig
from sae_lens.config.fields import dict_field, json_dict
from sae_lens.config.logging import LoggingConfig
from sae_lens.config.multi import MultiSAETrainingRunnerConfig
from sae_lens.config.pretokenize import PretokenizeRunnerConfig
from sae_lens.config.runner import LanguageModelSAERunnerConfig
from sae_lens.config.seqpos import _validate_seqpos
from sae_lens.config.toy_models import ToyModelSAERunnerConfig
from sae_lens.config.trainer import SAETrainerConfig
from sae_lens.config.validation import _default_cached_activations_path
from sae_lens.constants import (
    DTYPE_MAP,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSIFY_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)

__all__ = [
    "DTYPE_MAP",
    "SAE_CFG_FILENAME",
    "SAE_WEIGHTS_FILENAME",
    "SPARSIFY_WEIGHTS_FILENAME",
    "SPARSITY_FILENAME",
    "CacheActivationsRunnerConfig",
    "LanguageModelSAERunnerConfig",
    "LoggingConfig",
    "MultiSAETrainingRunnerConfig",
    "PretokenizeRunnerConfig",
    "SAETrainerConfig",
    "ToyModelSAERunnerConfig",
    "__version__",
    "_default_cached_activations_path",
    "_validate_seqpos",
    "dict_field",
    "json_dict",
]
