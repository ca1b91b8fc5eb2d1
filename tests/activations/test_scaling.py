from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.activations.fakes import TokenEcho, make_store, numbered_rows, serve

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")


def scaled_store(**fields: Any) -> Any:
    return make_store(normalize_activations="expected_average_only_in", **fields)


def test_the_factor_brings_the_mean_norm_to_the_root_of_the_width() -> None:
    store = scaled_store()
    rows = store.get_activations(torch.arange(150).view(30, 5)).view(-1, 4)
    expected = math.sqrt(4) / rows.norm(dim=-1).mean().item()
    store.set_norm_scaling_factor_if_needed()
    # Only full batches are seen: 144 of 150 rows.
    assert store.estimated_norm_scaling_factor == pytest.approx(expected, rel=0.05)
    assert isinstance(store.estimated_norm_scaling_factor, float)
    assert store.get_norm_scaling_factor(rows).item() == pytest.approx(expected)


def test_it_is_the_mean_over_batches_of_mean_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    store = scaled_store()
    batches = iter([torch.ones(2, 1, 4), 3 * torch.ones(2, 1, 4)])
    monkeypatch.setattr(store, "next_batch", lambda: next(batches))
    assert store.estimate_norm_scaling_factor(2) == pytest.approx(2 / 4)


def test_after_estimating_all_tokens_are_served_scaled() -> None:
    store = scaled_store()
    store.set_norm_scaling_factor_if_needed()
    assert store._storage_buffer is None
    factor = store.estimated_norm_scaling_factor
    batches = torch.cat([store.next_batch() for _ in range(9)])[:, 0]
    assert torch.allclose(batches[:, 2], torch.full((144,), factor))
    tokens = (batches[:, 0] / factor).round().long().tolist()
    assert len(set(tokens)) == 144


def test_estimating_does_not_change_the_order() -> None:
    plain, scaled = make_store(), scaled_store()
    scaled.set_norm_scaling_factor_if_needed()
    want = torch.cat([plain.next_batch() for _ in range(12)])
    got = torch.cat([scaled.next_batch() for _ in range(12)])
    assert torch.allclose(got, want * scaled.estimated_norm_scaling_factor)
    assert plain.n_dataset_processed == scaled.n_dataset_processed


def test_rows_that_were_read_before_are_dropped() -> None:
    store = make_store()
    assert len(store.storage_buffer) == 40
    store.normalize_activations = "expected_average_only_in"
    store.set_norm_scaling_factor_if_needed()
    assert store._storage_buffer is None
    assert torch.all(store.next_batch()[..., 2] == store.estimated_norm_scaling_factor)


def test_estimating_stops_when_all_of_the_data_was_seen() -> None:
    store = scaled_store(dataset=numbered_rows(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.estimate_norm_scaling_factor(1000)
    assert sum(store.model.batch_sizes) == 20


def test_a_known_factor_is_not_estimated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = scaled_store()
    store.estimated_norm_scaling_factor = 3.0
    store.set_norm_scaling_factor_if_needed()
    assert store.estimated_norm_scaling_factor == 3.0
    assert store.model.batch_sizes == []


def test_only_expected_average_only_in_needs_a_factor() -> None:
    store = make_store(normalize_activations="layer_norm")
    store.set_norm_scaling_factor_if_needed()
    assert store.estimated_norm_scaling_factor is None


def test_scaling_and_unscaling_undo_each_other_and_need_a_factor() -> None:
    store = scaled_store()
    x = torch.randn(3, 4)
    for call in (store.apply_norm_scaling_factor, store.unscale):
        with pytest.raises(ValueError, match="norm scaling factor is not set"):
            call(x)
    with pytest.raises(ValueError, match="norm scaling factor is not set"):
        store.get_buffer(1)
    store.estimated_norm_scaling_factor = 2.0
    assert torch.equal(store.apply_norm_scaling_factor(x), 2 * x)
    assert torch.equal(store.unscale(store.apply_norm_scaling_factor(x)), x)
    assert torch.equal(store.get_buffer(1, shuffle=False)[:, 0, 2], torch.full((10,), 2.0))


def test_activations_without_a_norm_are_refused() -> None:
    class Silent(TokenEcho):
        def run_with_cache(self, tokens: torch.Tensor, **kwargs: Any) -> Any:
            return None, {kwargs["names_filter"][0]: torch.zeros(*tokens.shape, 4)}

    store = scaled_store(model=Silent())
    with pytest.raises(ValueError, match="mean norm of the activations .* is 0.0"):
        store.set_norm_scaling_factor_if_needed()
    assert store.estimated_norm_scaling_factor is None


def test_data_that_can_be_read_only_once_are_not_rewound() -> None:
    class Once:
        def __init__(self) -> None:
            self.rows = iter([{"tokens": [i] * 5} for i in range(200)])

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return next(self.rows)

    store = scaled_store(dataset=Once())
    store.estimated_norm_scaling_factor = store.estimate_norm_scaling_factor(2)
    factor = store.estimated_norm_scaling_factor
    tokens = [round(t / factor) for t in store.next_batch()[:, 0, 0].tolist()]
    assert min(tokens) > 15


def test_the_epoch_is_not_used_up_for_a_small_dataset() -> None:
    rows = Dataset.from_dict({"tokens": torch.arange(40).view(8, 5).tolist()})
    store = scaled_store(dataset=rows, train_batch_size_tokens=8)
    store.set_norm_scaling_factor_if_needed()
    store.normalize_activations = "none"
    assert sorted(serve(store, 5)) == list(range(40))
