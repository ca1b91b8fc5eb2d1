"""How much memory the store takes, seen by watching every tensor that is made."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode

from tests.activations.fakes import TokenEcho, make_store

D_IN = 1024
CONTEXT = 32
PROMPTS = 8
TRAIN_BATCH = 256
BATCHES_IN_BUFFER = 16

LM_BATCH_BYTES = PROMPTS * CONTEXT * D_IN * 4
TRAIN_BATCH_BYTES = TRAIN_BATCH * D_IN * 4
BUFFER_BYTES = BATCHES_IN_BUFFER * LM_BATCH_BYTES
# Tokens, row numbers and the pieces in which rows are converted.
SMALL = LM_BATCH_BYTES // 4


class AllocationWatch(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0
        self.largest: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.largest.append(storage.nbytes())
        weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))


def watched_store(**fields: Any) -> Any:
    rows = torch.randint(0, 30, (1000, CONTEXT)).tolist()
    return make_store(
        model=TokenEcho(D_IN),
        dataset=Dataset.from_dict({"tokens": rows}),
        d_in=D_IN,
        context_size=CONTEXT,
        store_batch_size_prompts=PROMPTS,
        n_batches_in_buffer=BATCHES_IN_BUFFER,
        train_batch_size_tokens=TRAIN_BATCH,
        **fields,
    )


def peak_of(store: Any, n_batches: int = 40) -> int:
    with AllocationWatch() as watch:
        for _ in range(n_batches):
            batch = store.next_batch()
            del batch
    buffer_bytes = BUFFER_BYTES * store._rows_per_prompt // CONTEXT
    assert sum(size >= buffer_bytes for size in watch.largest) == 1, "one buffer, made once"
    return watch.peak


def test_the_watch_sees_what_is_alive_at_once() -> None:
    with AllocationWatch() as watch:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second * 2
    assert watch.peak == 8000
    assert third[0] == 2


def test_above_the_buffer_there_is_one_model_batch_and_one_training_batch() -> None:
    peak = peak_of(watched_store())
    assert peak >= BUFFER_BYTES
    assert peak <= BUFFER_BYTES + LM_BATCH_BYTES + TRAIN_BATCH_BYTES + SMALL


def test_conversion_scaling_and_exclusion_cost_no_further_batch() -> None:
    store = watched_store(
        normalize_activations="expected_average_only_in",
        exclude_special_tokens=torch.tensor([3]),
        seqpos_slice=(1, None),
    )
    store.estimated_norm_scaling_factor = 2.0
    peak = peak_of(store)
    assert peak <= BUFFER_BYTES + LM_BATCH_BYTES + TRAIN_BATCH_BYTES + SMALL


def test_looking_at_the_storage_buffer_makes_no_copy_of_it() -> None:
    store = watched_store()
    store.next_batch()
    with AllocationWatch() as watch:
        assert len(store.storage_buffer) > 0
    made = [size for size in watch.largest if size < BUFFER_BYTES]
    assert max(made) <= LM_BATCH_BYTES


def test_get_buffer_holds_its_result_and_one_model_batch() -> None:
    store = watched_store()
    with AllocationWatch() as watch:
        rows = store.get_buffer(BATCHES_IN_BUFFER)
    assert rows.numel() * 4 == BUFFER_BYTES
    # Two pieces of 256 rows are on the move while the rows are brought into their order.
    assert watch.peak <= BUFFER_BYTES + 2 * LM_BATCH_BYTES + SMALL
