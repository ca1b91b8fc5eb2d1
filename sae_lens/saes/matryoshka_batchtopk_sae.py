"""The home of Matryoshka BatchTopK SAEs in 6.x: names of this package at their newer path."""

from sae_lens.saes.matryoshka_batch_topk import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)

__all__ = [
    "MatryoshkaBatchTopKTrainingSAE",
    "MatryoshkaBatchTopKTrainingSAEConfig",
]
