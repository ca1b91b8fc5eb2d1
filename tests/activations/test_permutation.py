from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens.activations.permutation import shuffled_rows


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_every_row_comes_once(n: int, seed: int) -> None:
    assert sorted(shuffled_rows(0, n, n, seed).tolist()) == list(range(n))


@given(n=st.integers(2, 2000), data=st.data())
def test_any_part_can_be_had_alone(n: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start, n))
    whole = shuffled_rows(0, n, n, seed=7)
    assert np.array_equal(shuffled_rows(start, stop, n, seed=7), whole[start:stop])


def test_the_seed_decides_and_the_values_are_fixed_for_good() -> None:
    # A cache that is continued with another version of numpy or torch needs the same order.
    assert shuffled_rows(0, 10, 10, seed=42).tolist() == [8, 0, 5, 4, 7, 3, 1, 6, 9, 2]
    assert shuffled_rows(0, 10, 10, seed=43).tolist() != [8, 0, 5, 4, 7, 3, 1, 6, 9, 2]


@pytest.mark.parametrize("n", [5, 8])
def test_each_row_is_as_likely_everywhere(n: int) -> None:
    n_seeds = 500
    counts = np.zeros((n, n))
    for seed in range(n_seeds):
        counts[np.arange(n), shuffled_rows(0, n, n, seed)] += 1
    # 6 standard deviations of a binomial count
    p = 1 / n
    assert np.abs(counts - n_seeds * p).max() < 6 * np.sqrt(n_seeds * p * (1 - p))


def test_neighbours_are_torn_apart() -> None:
    rows = shuffled_rows(0, 50_000, 50_000, seed=3)
    assert abs(np.corrcoef(rows, np.arange(50_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(rows[1:], rows[:-1])[0, 1]) < 0.02
