"""The home of BatchTopK SAEs in 6.x: names of this package at their newer path."""

from sae_lens.saes.batch_topk import BatchTopK, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

__all__ = ["BatchTopK", "BatchTopKTrainingSAE", "BatchTopKTrainingSAEConfig"]
