"""The home of topk SAEs in 6.x: names of this package at their newer path."""

from sae_lens.saes.activation_fns import TopK
from sae_lens.saes.topk import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

__all__ = ["TopK", "TopKSAE", "TopKSAEConfig", "TopKTrainingSAE", "TopKTrainingSAEConfig"]
