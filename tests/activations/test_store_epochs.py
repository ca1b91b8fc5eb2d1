"""What is served: every token once an epoch, in full batches, in an order that the seed decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens.activations.store import ActivationsStore
from sae_lens.activations.tokens import RowReader, find_tokens_column
from tests.activations.fakes import make_store, numbered_rows, serve, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")


@settings(max_examples=25, deadline=None)
@given(
    n_rows=st.integers(4, 40),
    n_batches_in_buffer=st.integers(2, 9),
    store_batch_size_prompts=st.integers(1, 5),
    batch=st.integers(1, 40),
    mixing_fraction=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_every_token_once_an_epoch_in_full_batches(
    n_rows: int,
    n_batches_in_buffer: int,
    store_batch_size_prompts: int,
    batch: int,
    mixing_fraction: float,
) -> None:
    n_tokens = n_rows * 5
    buffer = 2 * (n_batches_in_buffer // 2) * store_batch_size_prompts * 5
    batch = min(batch, buffer, n_tokens)
    store = make_store(
        dataset=numbered_rows(n_rows),
        n_batches_in_buffer=n_batches_in_buffer,
        store_batch_size_prompts=store_batch_size_prompts,
        train_batch_size_tokens=batch,
        activations_mixing_fraction=mixing_fraction,
    )
    batches = [store.next_batch() for _ in range(3 * n_tokens // batch)]
    assert all(b.shape == (batch, 1, 4) for b in batches)
    served = [token for b in batches for token in tokens_of(b)]
    for epoch in range(len(served) // n_tokens):
        tokens = served[epoch * n_tokens : (epoch + 1) * n_tokens]
        assert sorted(tokens) == list(range(n_tokens))


def test_the_order_is_a_function_of_the_seed_and_differs_between_epochs() -> None:
    torch.manual_seed(1)
    first = serve(make_store(seed=3), 18)
    torch.manual_seed(2)
    assert serve(make_store(seed=3), 18) == first
    assert serve(make_store(seed=4), 18) != first
    assert first[:144] != first[150 : 150 + 138]
    assert first[:144] != sorted(first[:144])


def test_a_seeded_store_leaves_the_global_generator_alone_and_an_unseeded_one_uses_it() -> None:
    before = torch.get_rng_state()
    serve(make_store(seed=3), 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    first = serve(make_store(seed=None), 5)
    torch.manual_seed(5)
    assert serve(make_store(seed=None), 5) == first


def test_half_of_the_buffer_stays_while_the_other_half_is_served() -> None:
    store = make_store(dataset=numbered_rows(200), train_batch_size_tokens=10)
    sizes = []
    for _ in range(4):
        sizes.append(len(list(store.get_data_loader())))
        assert len(store.storage_buffer) == 40
    assert sizes == [4, 4, 4, 4]
    assert store.model.batch_sizes == [2] * (8 + 3 * 4)


def test_rows_are_mixed_across_the_data_and_not_just_within_a_refill() -> None:
    store = make_store(dataset=numbered_rows(200), train_batch_size_tokens=10)
    serve(store, 8)
    late = [t for t in serve(store, 4) if t < 40]
    assert late  # rows of the very first refill are still to be met in the third pass


def test_the_end_of_an_epoch_is_announced_before_what_is_left_is_served() -> None:
    store = make_store(dataset=numbered_rows(18))  # 90 tokens; the buffer holds 80
    served = serve(store, 3)
    with pytest.warns(UserWarning, match="exhausted"):
        served += serve(store, 1)
    assert set(serve(store, 2)) - set(range(90)) == set()
    assert len(set(served)) == 64


def test_the_rest_of_an_epoch_comes_before_the_rows_of_the_next() -> None:
    store = make_store(dataset=numbered_rows(18))
    served = serve(store, 12)
    assert sorted(served[:90]) == list(range(90))
    assert sorted(served[90:180]) == list(range(90))


def test_a_loader_that_was_replaced_serves_nothing_more() -> None:
    store = make_store()
    old = store.get_data_loader()
    next(old)
    new = store.get_data_loader()
    assert list(old) == []
    assert len(list(new)) > 0


def test_iterating_is_the_same_as_next_batch() -> None:
    store, other = make_store(), make_store()
    assert iter(store) is store
    for _, batch in zip(range(4), store, strict=False):
        assert torch.equal(batch, other.next_batch())


def test_storage_buffer_reads_half_a_buffer_and_its_rows_are_served_later() -> None:
    store = make_store()
    assert store._storage_buffer is None
    assert store._dataloader is None
    assert store.storage_buffer.shape == (4 * 2 * 5, 1, 4)
    assert store.storage_buffer.data_ptr() == store.storage_buffer.data_ptr()
    waiting = tokens_of(store.storage_buffer)
    served = Counter(serve(store, 9))
    assert max(served.values()) == 1
    assert set(waiting) & set(served)


def test_setting_the_storage_buffer_to_none_drops_what_is_held() -> None:
    store = make_store()
    store.next_batch()
    store._storage_buffer = None
    assert store._storage_buffer is None
    assert store._dataloader is None
    assert store.next_batch().shape == (16, 1, 4)


def test_excluded_tokens_are_never_served_but_are_in_get_buffer() -> None:
    excluded = torch.arange(0, 150, 5)  # the first position of every row
    store = make_store(exclude_special_tokens=excluded)
    served = serve(store, 7)  # 112 of 120 tokens
    assert not set(served) & set(excluded.tolist())
    assert len(set(served)) == len(served)
    assert 0 in tokens_of(make_store(exclude_special_tokens=excluded).get_buffer(1))
    storage = make_store(exclude_special_tokens=excluded).storage_buffer
    assert len(storage) == 4 * 2 * 4


def test_sliced_positions_alone_are_served_and_exclusion_follows_the_slice() -> None:
    store = make_store(
        seqpos_slice=(1, 4), exclude_special_tokens=torch.tensor([2]), train_batch_size_tokens=8
    )
    served = serve(store, 11)
    assert len(set(served)) == 88
    assert {t % 5 for t in served} == {1, 2, 3}
    assert 2 not in served


def test_a_dataset_smaller_than_a_refill_is_one_refill() -> None:
    store = make_store(dataset=numbered_rows(4), train_batch_size_tokens=10)
    served = serve(store, 6)
    for epoch in range(3):
        assert sorted(served[20 * epoch : 20 * (epoch + 1)]) == list(range(20))


def test_a_dataset_smaller_than_a_batch_is_refused() -> None:
    store = make_store(dataset=numbered_rows(3))
    with pytest.raises(ValueError, match="15 activations.*less than one training batch of 16"):
        store.next_batch()


@pytest.mark.parametrize("access", ["storage_buffer", "get_data_loader", "next_batch"])
def test_a_buffer_of_one_batch_cannot_be_mixed_but_may_exist(access: str) -> None:
    store = make_store(n_batches_in_buffer=1)
    assert store.get_buffer(1).shape == (10, 1, 4)
    with pytest.raises(ValueError, match="n_batches_in_buffer is 1.*at least 2"):
        value = getattr(store, access)
        value()


def test_a_buffer_smaller_than_a_batch_is_refused() -> None:
    store = make_store(train_batch_size_tokens=81)
    with pytest.raises(ValueError, match="buffer holds 80 activations.*tokens is 81.*raise"):
        store.next_batch()


def test_a_large_batch_in_a_small_buffer_still_comes_in_full() -> None:
    store = make_store(n_batches_in_buffer=2, train_batch_size_tokens=19)
    assert [len(store.next_batch()) for _ in range(10)] == [19] * 10


class TestEvaluationStream:
    def test_training_goes_on_as_if_there_had_been_no_evaluation(self) -> None:
        store, undisturbed = make_store(), make_store()
        serve(store, 3)
        serve(undisturbed, 3)
        before = store.state_dict()
        stream = store.evaluation_stream()
        stream.get_batch_tokens(40)
        stream.reset_input_dataset()
        stream.shuffle_input_dataset(seed=1)
        serve(stream, 12)
        after = store.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert serve(store, 12) == serve(undisturbed, 12)

    def test_it_begins_at_the_start_of_the_data(self) -> None:
        store = make_store()
        store.get_batch_tokens(7)
        stream = store.evaluation_stream()
        assert stream.get_batch_tokens(1).tolist() == [[0, 1, 2, 3, 4]]
        assert stream.n_dataset_processed == 0

    def test_it_leaves_the_position_of_a_streaming_dataset_alone(self) -> None:
        rows = numbered_rows().to_iterable_dataset(num_shards=3)
        store: ActivationsStore = make_store(dataset=rows)
        store.get_batch_tokens(7)
        before = store.state_dict()
        store.evaluation_stream().get_batch_tokens(20)
        after = store.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert store.get_batch_tokens(1)[0, 0] == 35

    def test_it_can_read_other_data_and_keeps_the_scaling_factor(self) -> None:
        store = make_store(normalize_activations="expected_average_only_in")
        store.estimated_norm_scaling_factor = 2.0
        other = Dataset.from_dict({"input_ids": [[7] * 5] * 4})
        stream = store.evaluation_stream(other)
        assert stream.get_batch_tokens(1).tolist() == [[7] * 5]
        assert stream.estimated_norm_scaling_factor == 2.0
        assert store.tokens_column == "tokens"


@pytest.mark.parametrize("bad", [-0.1, 1.0])
def test_a_mixing_fraction_that_serves_nothing_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"activations_mixing_fraction is {bad}"):
        make_store(activations_mixing_fraction=bad).next_batch()


def test_a_dataset_of_nothing_but_excluded_tokens_is_refused() -> None:
    dataset: Any = Dataset.from_dict({"tokens": [[1] * 5] * 40})
    store = make_store(dataset=dataset, exclude_special_tokens=torch.tensor([1]))
    with pytest.raises(ValueError, match="no activations at all"):
        store.next_batch()


class PositionInItself:
    """A stream like those of the datasets library, whose iterators share the object's position."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._ex_iterable = rows
        self.position = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self.position < len(self._ex_iterable):
            self.position += 1
            yield self._ex_iterable[self.position - 1]
        self.position = 0


def test_passes_over_one_stream_do_not_disturb_each_other() -> None:
    stream = PositionInItself([{"tokens": [i]} for i in range(6)])
    assert find_tokens_column(stream)[2] == [0]
    one, two = RowReader(stream, "tokens"), RowReader(stream, "tokens")
    assert [next(one), next(two), next(one), next(two)] == [[0], [0], [1], [1]]
    assert list(one) == list(two) == [[2], [3], [4], [5]]
    assert stream.position == 0
