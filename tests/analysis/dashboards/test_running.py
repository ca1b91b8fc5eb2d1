"""Statistics that see every batch once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens.analysis.dashboards.running import (
    Batch,
    RunningHistogram,
    SampledPassages,
    TopPassages,
)


@settings(max_examples=40, deadline=None)
@given(scales=st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=6), seed=st.integers(0, 10_000))
def test_histogram_counts_are_exact_whatever_comes_first(scales: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(20, 3, generator=generator).relu() * scale for scale in scales]
    histogram = RunningHistogram(3, n_bins=8)
    for batch in batches:
        histogram.update(batch)
    everything = torch.cat(batches)
    for i in range(3):
        values = everything[:, i][everything[:, i] > 0]
        upper = float(histogram.upper[i])
        assert values.max() < upper <= 2 * values.max()
        bins = (values / upper * 8).long()
        assert histogram.counts[i].tolist() == torch.bincount(bins, minlength=8).tolist()


def test_a_histogram_without_firings_is_empty() -> None:
    histogram = RunningHistogram(2)
    histogram.update(torch.zeros(5, 2))
    assert histogram.counts.sum() == 0


def test_samples_are_even_over_all_firings() -> None:
    # Each of many features fires on the same ten tokens, six of them in one context; every one of
    # the ten has to be drawn equally often.
    n_features = 20_000
    acts = torch.zeros(3, 8, n_features)
    acts[0, :6], acts[1, 2], acts[2, 5:] = 1.0, 1.0, 1.0
    sampled = SampledPassages(n_features, capacity=1, before=1, after=1, seed=0)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    for row in range(3):
        sampled.update(Batch(tokens, acts[row : row + 1], row))
    where = sampled.kept.rows[:, 0] * 8 + sampled.kept.positions[:, 0]
    drawn = torch.bincount(where, minlength=24).float() / n_features
    expected = acts[..., 0].flatten() / 10
    # five standard deviations of a share of one tenth
    assert (drawn - expected).abs().max() < 5 * (0.09 / n_features) ** 0.5


def test_memory_does_not_grow_with_the_tokens() -> None:
    top = TopPassages(4, capacity=3, before=2, after=2)
    sampled = SampledPassages(4, capacity=3, before=2, after=2, seed=0)

    def size() -> int:
        return sum(
            value.numel()
            for part in (top.kept, sampled.kept)
            for value in vars(part).values()
            if isinstance(value, torch.Tensor)
        )

    before = size()
    for n in range(10):
        batch = Batch(torch.randint(0, 9, (5, 7)), torch.randn(5, 7, 4).relu(), 5 * n)
        top.update(batch)
        sampled.update(batch)
    assert size() == before
