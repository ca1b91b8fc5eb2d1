"""Statistics that see activations once, batch by batch, and never grow.

Memory is that of the features asked for times the passages kept of each; neither the number of
tokens nor the width of the SAE enters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of contexts and the chosen features' activations on it.

    Attributes:
        tokens: [batch, pos].
        acts: [batch, pos, feature], zero on tokens that are left out.
        first_row: number of the first context in the data.
    """

    tokens: Int[Tensor, "batch pos"]
    acts: Float[Tensor, "batch pos feature"]
    first_row: int


class RunningHistogram:
    """Counts of positive values in equal bins per feature, over a range that is found on the way.

    The upper end is a power of two. When a larger value comes it doubles, and neighbouring bins
    are added together, so that the counts stay exact.
    """

    def __init__(self, n_features: int, n_bins: int = 64):
        self.n_bins = n_bins
        self.counts = torch.zeros(n_features, n_bins, dtype=torch.int64)
        self.exponent = torch.full((n_features,), -126, dtype=torch.int64)

    @property
    def upper(self) -> Float[Tensor, " feature"]:
        """Upper end of each feature's last bin."""
        return torch.ldexp(torch.ones(len(self.exponent)), self.exponent)

    def update(self, acts: Float[Tensor, "... feature"]) -> None:
        """Count a batch; values that are not positive are no firings."""
        acts = acts.flatten(0, -2)
        self._make_room_for(acts.amax(0))
        _, feature = (acts > 0).nonzero(as_tuple=True)
        values = acts[acts > 0]
        bins = (values / self.upper[feature] * self.n_bins).long().clamp(max=self.n_bins - 1)
        flat = torch.bincount(feature * self.n_bins + bins, minlength=self.counts.numel())
        self.counts += flat.view_as(self.counts)

    def _make_room_for(self, highest: Float[Tensor, " feature"]) -> None:
        positive = highest > 0
        needed = torch.frexp(highest.clamp(min=1e-30)).exponent.long()
        target = torch.where(positive, torch.maximum(needed, self.exponent), self.exponent)
        empty = self.counts.sum(1) == 0
        while bool((grow := (target > self.exponent) & ~empty).any()):
            pairs = self.counts[grow].unflatten(1, (-1, 2)).sum(2)
            self.counts[grow] = torch.cat([pairs, torch.zeros_like(pairs)], dim=1)
            self.exponent[grow] += 1
            empty = self.counts.sum(1) == 0
        self.exponent = target


class KeptPassages:
    """The `capacity` passages per feature with the highest keys; a passage is kept with its tokens.

    Of one context at most one passage per feature is a candidate, so the kept ones differ.
    """

    def __init__(self, n_features: int, capacity: int, before: int, after: int):
        self.before, width = before, before + 1 + after
        self.offsets = torch.arange(-before, after + 1)
        self.keys = torch.full((n_features, capacity), -torch.inf)
        self.tokens = torch.zeros(n_features, capacity, width, dtype=torch.int32)
        self.acts = torch.zeros(n_features, capacity, width)
        self.present = torch.zeros(n_features, capacity, width, dtype=torch.bool)
        self.rows = torch.zeros(n_features, capacity, dtype=torch.int64)
        self.positions = torch.zeros(n_features, capacity, dtype=torch.int64)

    def entering(
        self, keys: Float[Tensor, "batch feature"]
    ) -> tuple[Int[Tensor, " new"], Int[Tensor, " new"], Int[Tensor, " new"]]:
        """Make room for the candidates that belong among the kept: their batch, feature, slot.

        Candidates with a key of minus infinity are none.
        """
        capacity = self.keys.shape[1]
        keys, chosen = torch.cat([self.keys, keys.T], dim=1).topk(capacity, dim=1)
        old = chosen.clamp(max=capacity - 1)
        for kept in ("tokens", "acts", "present"):
            stored = getattr(self, kept)
            setattr(self, kept, stored.gather(1, old[..., None].expand_as(stored)))
        self.rows, self.positions = self.rows.gather(1, old), self.positions.gather(1, old)
        self.keys = keys
        feature, slot = ((chosen >= capacity) & keys.isfinite()).nonzero(as_tuple=True)
        return chosen[feature, slot] - capacity, feature, slot

    def put(
        self,
        batch: Batch,
        row: Int[Tensor, " new"],
        feature: Int[Tensor, " new"],
        slot: Int[Tensor, " new"],
        position: Int[Tensor, " new"],
    ) -> None:
        """Store the passages around `position` of `row` in the slots that `entering` gave."""
        n_pos = batch.tokens.shape[1]
        where = position[:, None] + self.offsets  # [new, width]
        inside = (where >= 0) & (where < n_pos)
        where = where.clamp(0, n_pos - 1)
        self.tokens[feature, slot] = batch.tokens[row[:, None], where].int()
        acts = batch.acts[row[:, None], where, feature[:, None]]
        self.acts[feature, slot] = acts.float() * inside
        self.present[feature, slot] = inside
        self.rows[feature, slot] = row + batch.first_row
        self.positions[feature, slot] = position


class TopPassages:
    """Per feature the contexts in which it fires most strongly."""

    def __init__(self, n_features: int, capacity: int, before: int, after: int):
        self.kept = KeptPassages(n_features, capacity, before, after)

    def update(self, batch: Batch) -> None:
        """See one batch."""
        highest, position = batch.acts.float().max(dim=1)  # [batch, feature]
        keys = highest.masked_fill(highest <= 0, -torch.inf)
        row, feature, slot = self.kept.entering(keys)
        self.kept.put(batch, row, feature, slot, position[row, feature])


class SampledPassages:
    """Per feature an even sample of the tokens on which it fires.

    Every firing gets a uniform random number and the highest stay. Of n firings in one context the
    highest number is distributed as the n-th root of one uniform number, so one draw per context
    and feature is enough; which of the n it was is drawn only for the few that stay.
    """

    def __init__(self, n_features: int, capacity: int, before: int, after: int, seed: int):
        self.kept = KeptPassages(n_features, capacity, before, after)
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, batch: Batch) -> None:
        """See one batch."""
        firings = (batch.acts > 0).sum(dim=1)  # [batch, feature]
        uniform = torch.rand(firings.shape, generator=self.generator).clamp(min=1e-12)
        # the logarithm of the n-th root keeps the order and does not crowd at one
        keys = (uniform.log() / firings).masked_fill(firings == 0, -torch.inf)
        row, feature, slot = self.kept.entering(keys)
        if len(row):
            fires: Bool[Tensor, "new pos"] = batch.acts[row, :, feature] > 0
            position = torch.multinomial(fires.float(), 1, generator=self.generator)[:, 0]
            self.kept.put(batch, row, feature, slot, position)
