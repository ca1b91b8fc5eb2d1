"""Activations out of a cache are served as those of the model are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value

from sae_lens.activations.store import ActivationsStore
from tests.activations.fakes import HOOK, TokenEcho, make_store, numbered_rows, serve, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")


def write_cache(path: Path, n_rows: int = 30, with_ids: bool = False, hook: str = HOOK) -> str:
    ids = torch.arange(n_rows * 5).view(n_rows, 5)
    activations = TokenEcho().run_with_cache(ids, names_filter=[HOOK])[1][HOOK]
    columns: dict[str, Any] = {hook: activations.numpy()}
    features: dict[str, Any] = {hook: Array2D((5, 4), "float32")}
    if with_ids:
        columns["token_ids"] = ids.tolist()
        features["token_ids"] = Sequence(Value("int32"), length=5)
    Dataset.from_dict(columns, features=Features(features)).save_to_disk(str(path))
    return str(path)


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return write_cache(tmp_path / "cache")


def test_training_from_a_cache_equals_training_from_the_model(cache: str) -> None:
    fields = {"normalize_activations": "expected_average_only_in"}
    live, cached = make_store(**fields), make_store(cached_activations_path=cache, **fields)
    for store in (live, cached):
        store.set_norm_scaling_factor_if_needed()
    assert live.estimated_norm_scaling_factor == cached.estimated_norm_scaling_factor
    for _ in range(20):
        assert torch.equal(live.next_batch(), cached.next_batch())
    assert cached.model.batch_sizes == []


def test_every_row_once_an_epoch(cache: str) -> None:
    served = serve(make_store(cached_activations_path=cache), 28)
    for epoch in range(2):
        assert sorted(served[150 * epoch : 150 * (epoch + 1)]) == list(range(150))


def test_the_place_in_the_cache_is_part_of_the_state(cache: str) -> None:
    store = make_store(cached_activations_path=cache)
    serve(store, 4)
    resumed = make_store(cached_activations_path=cache)
    resumed.load_state_dict(store.state_dict())
    assert resumed.current_row_idx == store.current_row_idx > 0
    assert serve(resumed, 12) == serve(store, 12)


def test_buffers_are_permuted_and_scaled_like_fresh_ones(cache: str) -> None:
    store = make_store(
        cached_activations_path=cache, normalize_activations="expected_average_only_in"
    )
    store.estimated_norm_scaling_factor = 2.0
    assert tokens_of(store.get_buffer(2, shuffle=False)) == list(range(0, 40, 2))
    assert sorted(tokens_of(store.get_buffer(2))) == list(range(40, 80, 2))


def test_wrapping_serves_the_rows_that_remain(cache: str) -> None:
    store = make_store(cached_activations_path=cache)
    store.current_row_idx = 29
    rows = store._load_buffer_from_cached(2, 5, 1, 4, raise_on_epoch_end=False)
    assert rows.shape == (10, 1, 4)
    assert tokens_of(rows) == [145, 146, 147, 148, 149, 0, 1, 2, 3, 4]
    assert store.current_row_idx == 1


def test_the_end_is_announced_with_the_rows_that_remain(cache: str) -> None:
    store = make_store(cached_activations_path=cache)
    store.current_row_idx = 27
    with pytest.raises(StopIteration) as end:
        store.get_buffer(2, raise_on_epoch_end=True)
    assert tokens_of(end.value.partial) == list(range(135, 150))  # pyright: ignore
    assert store.current_row_idx == 0


def test_more_than_the_whole_cache_at_once_is_refused(cache: str) -> None:
    store = make_store(cached_activations_path=cache)
    with pytest.raises(ValueError, match="31 prompts .* have only 30"):
        store._load_buffer_from_cached(31, 5, 1, 4, raise_on_epoch_end=False)
    with pytest.raises(ValueError, match="32 prompts .* have only 30"):
        store.get_buffer(16)


def test_excluded_tokens_need_their_ids_in_the_cache(tmp_path: Path, cache: str) -> None:
    excluded = torch.tensor([2, 77])
    with_ids = write_cache(tmp_path / "ids", with_ids=True)
    served = serve(make_store(cached_activations_path=with_ids, exclude_special_tokens=excluded), 9)
    assert len(set(served)) == 144
    assert not set(served) & {2, 77}
    store = make_store(cached_activations_path=cache, exclude_special_tokens=excluded)
    with pytest.raises(ValueError, match="without token ids.*exclude_special_tokens=False"):
        store.next_batch()


def test_token_ids_come_with_their_rows(tmp_path: Path) -> None:
    store = make_store(cached_activations_path=write_cache(tmp_path / "ids", with_ids=True))
    store.current_row_idx = 28
    pair = store.get_buffer_with_tokens(2)
    assert pair.token_ids.tolist() == tokens_of(pair.activations)
    assert sorted(pair.token_ids.tolist()) == [*range(10), *range(140, 150)]


def test_a_slice_is_not_applied_to_cached_rows_but_to_the_model(cache: str) -> None:
    store = make_store(cached_activations_path=cache, seqpos_slice=(1, 4))
    assert store.get_buffer(1).shape == (10, 1, 4)
    assert store.get_activations(store.get_batch_tokens(1)).shape == (1, 3, 1, 4)


def test_bad_caches_are_refused(tmp_path: Path, cache: str) -> None:
    with pytest.raises(FileNotFoundError, match="no folder of cached activations at .*nowhere"):
        make_store(cached_activations_path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"columns \['blocks.0.hook_resid_pre'\], but not 'other'"):
        make_store(cached_activations_path=cache, hook_name="other")
    with pytest.raises(
        ValueError, match=r"\(5, 4\) a row, which does not match context_size and d_in: \(5, 8\)"
    ):
        make_store(cached_activations_path=cache, d_in=8)


def test_from_the_config_of_the_cache_runner(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sae_lens.activations.token_source.load_text_dataset", lambda *a, **k: numbered_rows(30, 7)
    )
    cfg = SimpleNamespace(
        new_cached_activations_path=cache,
        dtype="float32",
        hook_name=HOOK,
        hook_layer=0,
        context_size=7,
        seqpos_slice=(1, -1),
        d_in=4,
        n_batches_in_buffer=4,
        training_tokens=100,
        model_batch_size=3,
        device="cpu",
        dataset_path="some/where",
    )
    model = TokenEcho()
    model.tokenizer = None
    store = ActivationsStore.from_config(model, cfg)
    assert store.context_size == 5
    assert (store.store_batch_size_prompts, store.train_batch_size_tokens) == (3, 3)
    assert store.get_buffer(2, shuffle=False).shape == (30, 1, 4)
