"""The home of matching pursuit SAEs in 6.x: names of this package at their newer path."""

from sae_lens.saes.matching_pursuit import (
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
)

__all__ = [
    "MatchingPursuitSAE",
    "MatchingPursuitSAEConfig",
    "MatchingPursuitTrainingSAE",
    "MatchingPursuitTrainingSAEConfig",
]
