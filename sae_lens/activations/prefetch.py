"""Making batches ahead of time, in a thread, while the consumer works on those before.

Worth it where the language model and the SAE use different devices, or CUDA streams that leave each
other room; on a single CPU the two only compete. Batches come out in the order and with the values
that they have without a thread.

The thread runs from the first `take` after a pause until `pause`. In between, whatever the producer
uses belongs to the thread; after `pause` it is at rest between two batches, and the batches made
ahead are in `waiting`, where they can be saved and put back.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lens.breaking_off import may_be_broken_off


class _Batch(NamedTuple):
    rows: Tensor
    made: torch.Event | None
    """for a batch made on a stream of its own: when it is there"""


class _Channel:
    """What the two threads share. The thread holds nothing else while it waits."""

    def __init__(self) -> None:
        self.waiting: deque[_Batch] = deque()
        self.changed = threading.Condition()
        self.stops = False
        self.error: BaseException | None = None

    def stop(self) -> None:
        with self.changed:
            self.stops = True
            self.changed.notify_all()

    def wait_for_room(self, n_batches: int) -> bool:
        """False when there will be no more to do."""
        with self.changed:
            self.changed.wait_for(lambda: self.stops or len(self.waiting) < n_batches)
            return not self.stops

    def put(self, batch: _Batch) -> None:
        with self.changed:
            self.waiting.append(batch)
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.error = error
            self.changed.notify_all()


class Prefetcher:
    """Up to `n_batches` batches of a producer, made ahead of time.

    Args:
        produce: a bound method that makes the next batch. Its object is not kept alive.
        n_batches: how many may wait; 0 makes each when it is asked for, without a thread.
        devices: a bound method that gives those on which `produce` works; CUDA work there gets a
            stream of its own.

    Raises:
        ValueError: for a negative `n_batches`.
    """

    def __init__(
        self,
        produce: Callable[[], Tensor],
        n_batches: int,
        devices: Callable[[], Iterable[torch.device]] | None = None,
    ):
        if n_batches < 0:
            raise ValueError(f"prefetch_batches is {n_batches}; it must be 0 (off) or more.")
        self.n_batches = n_batches
        self._produce = weakref.WeakMethod(produce)  # type: ignore[arg-type]
        self._devices = None if devices is None else weakref.WeakMethod(devices)  # type: ignore[arg-type]
        self._streams: dict[torch.device, torch.cuda.Stream] | None = None
        self._channel = _Channel()
        self._thread: threading.Thread | None = None
        # Whoever forgets the prefetcher must not leave a thread behind that waits for ever.
        weakref.finalize(self, self._channel.stop)

    @property
    def waiting(self) -> list[Tensor]:
        """The batches made ahead, in order. Pause first."""
        return [batch.rows for batch in self._channel.waiting]

    @waiting.setter
    def waiting(self, batches: Iterable[Tensor]) -> None:
        self.pause()
        self._channel.waiting = deque(_Batch(rows, None) for rows in batches)
        self._channel.error = None

    def take(self) -> Tensor:
        """The next batch.

        Raises:
            BaseException: what the producer raised, once the batches from before are taken. After
                that the producer is asked again.
        """
        channel = self._channel
        if self.n_batches == 0:
            if channel.waiting:
                return channel.waiting.popleft().rows
            produce = self._produce()
            assert produce is not None
            return produce()
        with channel.changed:
            if self._thread is None and channel.error is None:
                self._start()
            with may_be_broken_off():
                channel.changed.wait_for(lambda: channel.waiting or channel.error is not None)
            if not channel.waiting:
                error, channel.error = channel.error, None
                self._thread = None
                assert error is not None
                raise error
            batch = channel.waiting.popleft()
            channel.changed.notify_all()
        if batch.made is not None:
            stream = torch.cuda.current_stream(batch.rows.device)
            stream.wait_event(batch.made)
            batch.rows.record_stream(stream)
        return batch.rows

    def pause(self) -> None:
        """Let the thread end its batch and stop. The next `take` goes on; nothing is lost."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        self._channel.stop()
        thread.join()
        self._thread = None
        for device, stream in (self._streams or {}).items():
            torch.cuda.current_stream(device).wait_stream(stream)

    def _start(self) -> None:
        if self._streams is None:
            devices = None if self._devices is None else self._devices()
            used = set() if devices is None else set(devices())
            self._streams = {
                device: torch.cuda.Stream(device) for device in used if device.type == "cuda"
            }
        for device, stream in self._streams.items():
            stream.wait_stream(torch.cuda.current_stream(device))
        self._channel.stops = False
        self._thread = threading.Thread(
            target=_work,
            args=(self._channel, self._produce, self.n_batches, tuple(self._streams.values())),
            name="prefetching activations",
            daemon=True,
        )
        self._thread.start()


def _work(
    channel: _Channel,
    produce: weakref.WeakMethod[Callable[[], Tensor]],
    n_batches: int,
    streams: tuple[torch.cuda.Stream, ...],
) -> None:
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(torch.cuda.stream(stream))
        while channel.wait_for_room(n_batches):
            make = produce()
            if make is None:
                return
            try:
                rows = make()
            except BaseException as error:
                channel.fail(error)
                return
            finally:
                del make
            made = None
            if rows.device.type == "cuda":
                made = torch.cuda.current_stream(rows.device).record_event()
            channel.put(_Batch(rows, made))
            del rows
