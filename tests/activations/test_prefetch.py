"""Batches made ahead in a thread: the same ones, and nothing left behind."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.activations.prefetch import Prefetcher
from sae_lens.activations.store import ActivationsStore
from tests.activations import fakes
from tests.activations.fakes import TokenEcho, numbered_rows, serve, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")

NAME = "prefetching activations"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


opened: list[ActivationsStore] = []


def make_store(*args: Any, **fields: Any) -> ActivationsStore:
    opened.append(fakes.make_store(*args, **fields))
    return opened[-1]


class Counter:
    """Makes batches 0, 1, 2, ...; fails at the numbers it is told to."""

    def __init__(self, *failures: int):
        self.n = 0
        self.failures = list(failures)

    def make(self) -> Tensor:
        if self.n in self.failures:
            self.failures.remove(self.n)
            raise KeyError(f"at {self.n}")
        self.n += 1
        return torch.tensor([self.n - 1])


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Any:
    yield
    while opened:
        opened.pop().pause_prefetching()
    assert not threads()


@pytest.mark.parametrize("n_batches", [0, 1, 3])
def test_batches_come_in_order(n_batches: int) -> None:
    counter = Counter()
    ahead = Prefetcher(counter.make, n_batches)
    assert [int(ahead.take()) for _ in range(20)] == list(range(20))
    assert len(threads()) == (n_batches > 0)
    wait_until(lambda: counter.n == 20 + n_batches)  # no more than asked for
    ahead.pause()
    assert not threads()
    assert [int(batch) for batch in ahead.waiting] == list(range(20, 20 + n_batches))
    assert [int(ahead.take()) for _ in range(5)] == list(range(20, 25))
    ahead.pause()


@pytest.mark.parametrize("n_batches", [0, 2])
def test_what_waits_can_be_put_back(n_batches: int) -> None:
    counter = Counter()
    ahead = Prefetcher(counter.make, n_batches)
    ahead.waiting = [torch.tensor([-2]), torch.tensor([-1])]
    assert [int(ahead.take()) for _ in range(4)] == [-2, -1, 0, 1]
    ahead.waiting = []
    start = counter.n
    assert int(ahead.take()) == start
    ahead.pause()


@pytest.mark.parametrize("n_batches", [0, 1, 4])
def test_an_error_comes_where_it_would_have_come(n_batches: int) -> None:
    counter = Counter(3, 5)
    ahead = Prefetcher(counter.make, n_batches)
    served: list[Any] = []
    for _ in range(9):
        try:
            served.append(int(ahead.take()))
        except KeyError as error:
            served.append(error.args[0])
    assert served == [0, 1, 2, "at 3", 3, 4, "at 5", 5, 6]
    ahead.pause()


def test_pausing_waits_for_the_batch_that_is_being_made() -> None:
    started, may_end = threading.Event(), threading.Event()

    class Slow(Counter):
        def make(self) -> Tensor:
            if self.n == 1:
                started.set()
                assert may_end.wait(20)
            return super().make()

    slow = Slow()
    ahead = Prefetcher(slow.make, 2)
    ahead.take()
    assert started.wait(20)
    threading.Timer(0.05, may_end.set).start()
    ahead.pause()
    assert [int(batch) for batch in ahead.waiting] == [1]


def test_the_thread_ends_with_whoever_it_works_for() -> None:
    counter = Counter()
    ahead = Prefetcher(counter.make, 2)
    ahead.take()
    assert threads()
    del ahead
    # A thread that is making a batch keeps its producer until the batch is made.
    wait_until(lambda: gc.collect() >= 0 and not threads())


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="prefetch_batches is -1"):
        make_store(prefetch_batches=-1)


class TestStore:
    @pytest.mark.parametrize("n_ahead", [1, 3, 20])
    def test_it_serves_the_same_batches(self, n_ahead: int) -> None:
        plain, ahead = make_store(), make_store(prefetch_batches=n_ahead)
        for _ in range(3):
            assert serve(ahead, 7) == serve(plain, 7)
            ahead.pause_prefetching()

    @pytest.mark.parametrize("resumed_ahead", [0, 2])
    @pytest.mark.parametrize("n_before", [1, 4, 9])
    def test_a_saved_state_goes_on_exactly(
        self, n_before: int, resumed_ahead: int, tmp_path: Path
    ) -> None:
        store, plain = make_store(prefetch_batches=3), make_store()
        assert serve(store, n_before) == serve(plain, n_before)
        store.save(tmp_path / "state")
        resumed = make_store(prefetch_batches=resumed_ahead)
        resumed.load(tmp_path / "state")
        want = serve(plain, 12)
        assert serve(resumed, 12) == want
        assert serve(store, 12) == want

    def test_scaling(self) -> None:
        fields: dict[str, Any] = {"normalize_activations": "expected_average_only_in"}
        stores = make_store(**fields), make_store(**fields, prefetch_batches=2)
        for store in stores:
            store.n_batches_for_norm_estimate = 4
            store.set_norm_scaling_factor_if_needed()
        assert stores[0].estimated_norm_scaling_factor == stores[1].estimated_norm_scaling_factor
        for _ in range(5):
            assert torch.equal(stores[0].next_batch(), stores[1].next_batch())
        # An estimate in the middle forgets what was made ahead, like the rest of the buffer.
        stores[1].estimate_norm_scaling_factor(2)
        assert stores[1]._ahead.waiting == []

    def test_using_the_store_brings_the_thread_to_rest(self) -> None:
        store = make_store(prefetch_batches=2)
        for use in (
            store.get_batch_tokens,
            lambda: store.get_activations(torch.zeros(1, 5, dtype=torch.long)),
            lambda: store.get_buffer(1),
            lambda: store.storage_buffer,
            store.state_dict,
            store.evaluation_stream,
            store.get_data_loader,
            store.pause_prefetching,
            store.reset_input_dataset,
        ):
            store.next_batch()
            assert threads()
            use()
            assert not threads()

    def test_an_evaluation_stream_makes_nothing_ahead(self) -> None:
        store = make_store(prefetch_batches=2)
        store.next_batch()
        stream = store.evaluation_stream()
        assert serve(stream, 2) == serve(make_store(), 2)
        assert not threads()

    def test_an_error_of_the_model_reaches_the_consumer(self) -> None:
        class Broken(TokenEcho):
            def run_with_cache(self, tokens: Tensor, **kwargs: Any) -> Any:
                if len(self.calls) == 10:
                    raise OSError("gone")
                return super().run_with_cache(tokens, **kwargs)

        store, plain = make_store(Broken(), prefetch_batches=2), make_store(Broken())
        served: list[list[int]] = []
        for one in (store, plain):
            served.append([])
            with pytest.raises(OSError, match="gone"):
                while True:
                    served[-1] += tokens_of(one.next_batch())
        assert served[0] == served[1] != []

    def test_warnings_as_errors_reach_the_consumer_too(self) -> None:
        store = make_store(dataset=numbered_rows(8), prefetch_batches=2, n_batches_in_buffer=4)
        assert len(serve(store, 12)) == 12 * 16  # over several epochs

    @pytest.mark.gpu
    def test_on_a_gpu(self) -> None:
        device = torch.device("cuda")

        class OnGPU(TokenEcho):
            def parameters(self) -> Any:
                yield torch.zeros(1, device=device)

            def run_with_cache(self, tokens: Tensor, **kwargs: Any) -> Any:
                cache = super().run_with_cache(tokens.cpu(), **kwargs)[1]
                heavy = torch.randn(2000, 2000, device=device)
                for _ in range(20):
                    heavy = heavy @ heavy / 2000
                return None, {n: a.to(device) + heavy[0, 0] * 0 for n, a in cache.items()}

        plain = make_store(OnGPU(), device=device)
        ahead = make_store(OnGPU(), device=device, prefetch_batches=3)
        for index in range(20):
            assert torch.equal(ahead.next_batch() * 2, plain.next_batch() * 2)
            if index == 7:
                state = ahead.state_dict()
                ahead = make_store(OnGPU(), device=device, prefetch_batches=1)
                ahead.load_state_dict(state)
        ahead.pause_prefetching()
