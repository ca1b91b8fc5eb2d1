"""The home of AbsTopK SAEs in 6.x: names of this package at their newer path."""

from sae_lens.saes.abs_topk import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
)

__all__ = [
    "AbsTopKSAE",
    "AbsTopKSAEConfig",
    "AbsTopKTrainingSAE",
    "AbsTopKTrainingSAEConfig",
]
