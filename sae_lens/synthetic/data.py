"""Activations that are sums of known sparse features.

    x = f D + noise, rows of D random unit vectors, f sparse and not negative

How often feature i fires follows Zipf's law, `p_i` proportional to `(i + 1)^-zipf`, scaled to a
mean number of active features. Some pairs fire together more often than by chance, and some
features fire only where another one, their parent, does; in both cases every feature keeps its own
`p_i`. Cf. the toy models of Elhage et al. 2022, "Toy Models of Superposition", and Chanin et al.
2024, "A is for Absorption" (arXiv:2409.14507) for hierarchies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# A feature that fires almost always is a bias, not a feature.
_MOST_FREQUENT = 0.9
_SEED_OF_DIRECTIONS = 7_919_000


@dataclass(frozen=True)
class SyntheticConfig:
    """What the activations are made of.

    Attributes:
        d_in: width of the activations.
        n_features: true features.
        mean_l0: how many of them are active on average.
        zipf: exponent of the firing frequencies; 0 for equal ones.
        n_correlated_pairs: pairs of features that fire together.
        correlation: share of samples in which such a pair shares its randomness.
        n_children: features that fire only where their parent does.
        magnitude_std: spread of a feature's activation around 1.
        noise: standard deviation of noise on the activations.
        seed: of directions and samples.
    """

    d_in: int = 64
    n_features: int = 128
    mean_l0: float = 6.0
    zipf: float = 0.5
    n_correlated_pairs: int = 8
    correlation: float = 0.5
    n_children: int = 8
    magnitude_std: float = 0.2
    noise: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("d_in", "n_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.mean_l0 <= _MOST_FREQUENT * self.n_features:
            raise ValueError(
                f"mean_l0 is {self.mean_l0}; of {self.n_features} features that fire at most in "
                f"{_MOST_FREQUENT:.0%} of samples, between 0 and "
                f"{_MOST_FREQUENT * self.n_features:.1f} can be active on average."
            )
        for name in ("zipf", "magnitude_std", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be finite and not negative."
                )
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"correlation is {self.correlation}; it must lie in [0, 1].")
        in_pairs = 2 * self.n_correlated_pairs + 2 * self.n_children
        if min(self.n_correlated_pairs, self.n_children) < 0 or in_pairs > self.n_features:
            raise ValueError(
                f"{self.n_correlated_pairs} correlated pairs and {self.n_children} children with "
                f"their parents need {in_pairs} features; there are {self.n_features}."
            )


class SyntheticSample(NamedTuple):
    """Activations and what they are made of."""

    activations: Float[Tensor, "batch d_in"]
    features: Float[Tensor, "batch n_features"]


class SyntheticData:
    """A source of samples.

    Args:
        cfg: the config.

    Attributes:
        directions: unit vectors of the true features, [n_features, d_in].
        frequencies: how often each fires, [n_features], descending.
        pairs: indices of correlated pairs, [n_correlated_pairs, 2].
        families: (parent, child) indices, [n_children, 2].
    """

    def __init__(self, cfg: SyntheticConfig) -> None:
        self.cfg = cfg
        # far from the seeds of first weights, which must know nothing of the truth
        generator = torch.Generator().manual_seed(_SEED_OF_DIRECTIONS + cfg.seed)
        directions = torch.randn(cfg.n_features, cfg.d_in, generator=generator)
        self.directions = directions / directions.norm(dim=-1, keepdim=True)
        self.frequencies = zipf_frequencies(cfg.n_features, cfg.mean_l0, cfg.zipf)
        order = torch.randperm(cfg.n_features, generator=generator)
        n_pairs, n_families = cfg.n_correlated_pairs, cfg.n_children
        self.pairs = order[: 2 * n_pairs].view(-1, 2)
        families = order[2 * n_pairs : 2 * (n_pairs + n_families)].view(-1, 2)
        # the parent is the one that fires more often, so that the child can keep its frequency
        self.families = families.sort(dim=-1).values

    def sample(self, n: int, generator: torch.Generator) -> SyntheticSample:
        """Draw `n` activations."""
        cfg = self.cfg
        chance = torch.rand(n, cfg.n_features, generator=generator)
        first, second = self.pairs.T
        shares = torch.rand(n, len(first), generator=generator) < cfg.correlation
        chance[:, second] = torch.where(shares, chance[:, first], chance[:, second])
        fires = chance < self.frequencies
        parent, child = self.families.T
        given_parent = self.frequencies[child] / self.frequencies[parent]
        fires[:, child] = fires[:, parent] & (chance[:, child] < given_parent)
        magnitude = 1 + cfg.magnitude_std * torch.randn(n, cfg.n_features, generator=generator)
        features = magnitude.clamp(min=0.1) * fires
        noise = cfg.noise * torch.randn(n, cfg.d_in, generator=generator)
        return SyntheticSample(features @ self.directions + noise, features)

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Tensor]:
        """Activations without end, [batch_size, d_in] each."""
        generator = self.generator_of_batches(seed)
        while True:
            yield self.sample(batch_size, generator).activations

    def generator_of_batches(self, seed: int | None = None) -> torch.Generator:
        """What draws training batches; by default by the config's seed."""
        return torch.Generator().manual_seed(self.cfg.seed + 1 if seed is None else seed)


def zipf_frequencies(n: int, total: float, exponent: float) -> Float[Tensor, " n"]:
    """`n` frequencies that fall as `(i + 1)^-exponent` and add up to `total`, each at most 0.9."""
    weights = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    frequencies = weights * (total / weights.sum())
    for _ in range(n):
        if frequencies.max() <= _MOST_FREQUENT + 1e-12:
            break
        frequencies = frequencies.clamp(max=_MOST_FREQUENT)
        rest = frequencies < _MOST_FREQUENT
        left = total - _MOST_FREQUENT * (~rest).sum()
        frequencies[rest] *= left / frequencies[rest].sum()
    return frequencies.float()
