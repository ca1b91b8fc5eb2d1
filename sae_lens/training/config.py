"""Early path of the configs; their home is `sae_lens.config`."""

from sae_lens.config import (
    DTYPE_MAP,
    CacheActivationsRunnerConfig,
    LanguageModelSAERunnerConfig,
    PretokenizeRunnerConfig,
    ToyModelSAERunnerConfig,
)

__all__ = [
    "DTYPE_MAP",
    "CacheActivationsRunnerConfig",
    "LanguageModelSAERunnerConfig",
    "PretokenizeRunnerConfig",
    "ToyModelSAERunnerConfig",
]
