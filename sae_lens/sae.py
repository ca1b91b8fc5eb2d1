"""The home of `SAE` in 5.x: names of `sae_lens.saes` at their older path."""

from sae_lens.constants import (
    DTYPE_MAP,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSIFY_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.loading.disk import sae_lens_disk_loader
from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS
from sae_lens.saes import SAE, SAEConfig
from sae_lens.saes.activation_fns import TopK, get_activation_fn
from sae_lens.saes.base import _disable_hooks

__all__ = [
    "DTYPE_MAP",
    "NAMED_PRETRAINED_SAE_LOADERS",
    "SAE",
    "SAE_CFG_FILENAME",
    "SAE_WEIGHTS_FILENAME",
    "SPARSIFY_WEIGHTS_FILENAME",
    "SPARSITY_FILENAME",
    "SAEConfig",
    "TopK",
    "_disable_hooks",
    "get_activation_fn",
    "sae_lens_disk_loader",
]
