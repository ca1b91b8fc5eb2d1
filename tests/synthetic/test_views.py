"""Every kind of architecture sees the same features."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from sae_lens.synthetic import SyntheticConfig, SyntheticData, view_of
from tests.helpers import assert_close

CONFIG = SyntheticConfig(
    d_in=8, n_features=12, mean_l0=2.0, n_correlated_pairs=1, n_children=1, noise=0.0
)


@pytest.mark.parametrize(
    ("kind", "read", "batch"),
    [("sae", 8, 8), ("transcoder", 8, 16), ("crosscoder", 16, 16),
     ("cross_layer_transcoder", 16, 32)],
)  # fmt: skip
def test_what_is_read_and_written_is_made_of_the_features(kind: str, read: int, batch: int) -> None:
    data = SyntheticData(CONFIG)
    view = view_of(kind, data)
    sample = view.sample(50, torch.Generator().manual_seed(0))
    assert_close(sample.activations, sample.features @ view.read)
    assert sample.activations.shape == (50, read)
    if sample.written is not None:
        assert_close(sample.written, sample.features @ view.directions)
        assert not torch.equal(view.read, view.directions)
    assert view.directions.norm(dim=-1).min() > 0.9
    first, again = (next(view.batches(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (5, batch)
    a, b = islice(view.batches(5), 2)
    assert not torch.equal(a, b)


def test_a_feature_of_a_layer_is_read_there_and_written_from_there_on() -> None:
    view = view_of("cross_layer_transcoder", SyntheticData(CONFIG))
    read, written = (m.view(12, 2, 8).norm(dim=-1) for m in (view.read, view.directions))
    for feature in range(12):
        layer = feature % 2
        assert read[feature].nonzero().flatten().tolist() == [layer]
        assert written[feature].nonzero().flatten().tolist() == list(range(layer, 2))


def test_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="Unknown kind 'nothing'"):
        view_of("nothing", SyntheticData(CONFIG))
