"""The synthetic activations are what their config says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from sae_lens.synthetic import SyntheticConfig, SyntheticData
from sae_lens.synthetic.data import zipf_frequencies
from tests.helpers import assert_close

SIZE = {"d_in": 32, "n_features": 96}


def sample(n: int = 20_000, **fields: Any) -> Any:
    data = SyntheticData(SyntheticConfig(**{"noise": 0.0, **SIZE, **fields}))
    return data, data.sample(n, torch.Generator().manual_seed(3))


def test_activations_are_sums_of_features():
    data, (x, features) = sample(100)
    assert_close(x, features @ data.directions, atol=1e-5)
    assert_close(data.directions.norm(dim=-1), torch.ones(96))
    assert (features >= 0).all()
    active = features[features > 0]
    assert abs(float(active.mean()) - 1) < 0.05


def test_every_feature_keeps_its_frequency():
    data, (_, features) = sample(n_correlated_pairs=20, n_children=20, correlation=0.9)
    counted = (features > 0).float().mean(dim=0)
    assert (counted - data.frequencies).abs().max() < 0.02
    assert float((features > 0).float().sum(-1).mean()) == pytest.approx(6.0, rel=0.05)


def test_frequencies_follow_zipf():
    frequencies = zipf_frequencies(50, 5.0, 1.0)
    assert float(frequencies.sum()) == pytest.approx(5.0, rel=1e-4)
    # the first is cut off at 0.9, the others keep their ratios
    assert float(frequencies[0]) == pytest.approx(0.9)
    assert_close(frequencies[1] / frequencies[9], torch.tensor(5.0))
    assert_close(zipf_frequencies(4, 1.0, 0.0), torch.full((4,), 0.25))
    assert (zipf_frequencies(10, 8.9, 2.0) <= 0.9 + 1e-6).all()


def test_pairs_fire_together_and_children_only_with_their_parents():
    data, (_, features) = sample(n_correlated_pairs=8, n_children=8, correlation=0.8, zipf=0.2)
    fires = (features > 0).float()
    correlation = torch.corrcoef(fires.T)
    first, second = data.pairs.T
    assert correlation[first, second].min() > 0.3
    parent, child = data.families.T
    assert not (fires[:, child] * (1 - fires[:, parent])).any()
    others = [
        i
        for i in range(96)
        if i not in {*data.pairs.flatten().tolist(), *data.families.flatten().tolist()}
    ]
    assert correlation[others][:, others].fill_diagonal_(0).abs().max() < 0.1


def test_batches_depend_on_the_seed_alone():
    data = SyntheticData(SyntheticConfig())
    a, b = (list(itertools.islice(data.batches(4), 2)) for _ in range(2))
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(next(data.batches(4, seed=9)), a[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_in": 0}, "d_in is 0"),
        ({"mean_l0": 90.0}, "between 0 and 86.4"),
        ({"correlation": 1.5}, r"must lie in \[0, 1\]"),
        ({"n_children": 60}, "need 136 features; there are 96"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**{**SIZE, **fields})
