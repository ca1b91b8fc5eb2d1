"""A store that is saved and loaded goes on exactly where it stood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file

from tests.activations.fakes import make_store, numbered_rows, serve, tokens_of
from tests.helpers import WordTokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:All samples in the training dataset"),
    pytest.mark.filterwarnings("ignore:Dataset is not tokenized"),
]


def streaming_rows() -> IterableDataset:
    return numbered_rows().to_iterable_dataset(num_shards=4)


def texts() -> Dataset:
    lengths = [13, 3, 1, 22, 8, 5, 40, 2, 9, 17] * 3
    return Dataset.from_dict({"text": list(WordTokenizer().texts(lengths))})


def list_of_rows() -> list[dict[str, Any]]:
    return [{"tokens": list(range(5 * i, 5 * i + 5))} for i in range(30)]


SOURCES = {
    "map-style": numbered_rows,
    "streaming": streaming_rows,
    "mixed streaming": lambda: streaming_rows().shuffle(seed=3, buffer_size=7),
    "text": texts,
    "streaming text": lambda: texts().to_iterable_dataset(),
    "list": list_of_rows,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("n_before", [0, 1, 4, 9, 15])
def test_a_loaded_store_serves_what_the_saved_one_serves(source: str, n_before: int) -> None:
    make = SOURCES[source]
    store = make_store(dataset=make(), prepend_bos=True)
    serve(store, n_before)
    state = store.state_dict()
    resumed = make_store(dataset=make(), prepend_bos=True)
    resumed.load_state_dict(state)
    for _ in range(12):
        assert torch.equal(store.next_batch(), resumed.next_batch())
    after, after_resumed = store.state_dict(), resumed.state_dict()
    assert after.keys() == after_resumed.keys()
    assert all(torch.equal(after[name], after_resumed[name]) for name in after)


def test_a_state_is_a_snapshot() -> None:
    store = make_store()
    serve(store, 2)
    state = store.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    serve(store, 8)
    assert all(torch.equal(before[name], state[name]) for name in before)


def test_saving_does_not_change_what_is_served() -> None:
    store, undisturbed = make_store(), make_store()
    for _ in range(12):
        store.state_dict()
        assert torch.equal(store.next_batch(), undisturbed.next_batch())


def test_a_file_holds_the_state(tmp_path: Path) -> None:
    store = make_store(normalize_activations="expected_average_only_in")
    store.estimated_norm_scaling_factor = 0.7
    serve(store, 3)
    path = tmp_path / "store.safetensors"
    store.save(str(path))
    assert {"n_dataset_processed", "storage_buffer", "estimated_norm_scaling_factor"} <= set(
        load_file(path)
    )
    resumed = make_store(normalize_activations="expected_average_only_in")
    resumed.load(path)
    assert resumed.estimated_norm_scaling_factor == 0.7
    assert serve(store, 5) == serve(resumed, 5)


def test_a_fresh_store_has_nothing_but_its_count() -> None:
    assert make_store().state_dict() == {"n_dataset_processed": torch.tensor(0)}


def test_the_named_entries_mean_what_they_say() -> None:
    store = make_store()
    serve(store, 1)
    state = store.state_dict()
    assert torch.equal(state["storage_buffer"], store.storage_buffer)
    assert state["n_dataset_processed"] == 15
    assert "estimated_norm_scaling_factor" not in state


@pytest.mark.parametrize("name", ["storage_buffer", "storage_buffer_activations"])
def test_a_state_of_the_original_restores_factor_buffer_and_place(name: str) -> None:
    store = make_store()
    store.load_state_dict(
        {
            "n_dataset_processed": torch.tensor(30 + 4),
            "estimated_norm_scaling_factor": torch.tensor(1.5),
            name: torch.full((40, 1, 4), 500.0),
        }
    )
    assert store.estimated_norm_scaling_factor == 1.5
    assert store.n_dataset_processed == 34
    assert tokens_of(store.storage_buffer) == [500] * 40
    assert store.get_batch_tokens(1)[0, 0] == 20


def test_skipping_rows_of_a_streaming_dataset_without_its_own_state() -> None:
    store = make_store(dataset=streaming_rows())
    store.load_state_dict({"n_dataset_processed": torch.tensor(7)})
    assert store.get_batch_tokens(1)[0, 0] == 35


def test_an_epoch_that_was_entered_near_its_end_may_be_less_than_a_batch() -> None:
    store = make_store()
    store.load_state_dict({"n_dataset_processed": torch.tensor(29)})
    served = serve(store, 2)
    assert sorted(served[:5]) == [145, 146, 147, 148, 149]


def test_a_saved_buffer_that_does_not_fit_is_refused() -> None:
    store = make_store()
    serve(store, 1)
    state = store.state_dict()
    with pytest.raises(ValueError, match=r"saved buffer has the shape .*d_in=8"):
        make_store(d_in=8).load_state_dict(state)
    with pytest.raises(ValueError, match="room for 25 rows"):
        make_store(n_batches_in_buffer=2).load_state_dict(state)


def test_resuming_a_map_style_dataset_reads_nothing_that_was_read_before() -> None:
    reads: list[int] = []

    class Rows:
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            if index >= len(self):
                raise IndexError(index)
            reads.append(index)
            return {"tokens": [index] * 5}

    store = make_store(dataset=Rows())
    store.get_batch_tokens(900)
    resumed = make_store(dataset=Rows())
    resumed.load_state_dict(store.state_dict())
    reads.clear()
    assert resumed.get_batch_tokens(1)[0, 0] == 900
    assert reads == [900]
