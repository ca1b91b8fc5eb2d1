"""Stopping, and making checkpoints, between two iterations instead of in the middle of one."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sae_lens import breaking_off

# What stops a job often sends its signal to the process and to its group, so that it comes twice.
SAME_REQUEST_SECONDS = 1.0


class IterationGuard:
    """Puts off a request to stop until the state of the training is whole.

    That is so between iterations: weights, optimiser, schedules, counters and the place in the data
    are those of the same step. It is also so where an iteration was broken off and what it had
    begun was put back.

    Attributes:
        is_in_step: whether that holds now. Whoever puts an iteration back sets it.
    """

    def __init__(self) -> None:
        self.is_in_step = True
        self._is_in_iteration = False
        self._was_forced = False
        self._request: BaseException | None = None
        self._asked_at = -math.inf
        self._wants_checkpoint = False

    def request_stop(self, error: BaseException) -> bool:
        """Have `error` raised as soon as the state is whole: see `breaking_off`.

        A second request shortly after the first is taken for the same one.

        Returns:
            False outside an iteration, or when there was a request already: the caller should then
            raise at once.
        """
        now = time.monotonic()
        if now - self._asked_at < SAME_REQUEST_SECONDS:
            return True
        if not self._is_in_iteration or self._request is not None:
            self._was_forced = True
            return False
        self._request, self._asked_at = error, now
        breaking_off.ask_to_break_off(error)
        return True

    def request_checkpoint(self) -> None:
        """Have a checkpoint made at the end of the current iteration, or of the next."""
        self._wants_checkpoint = True

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was requested since this was last asked."""
        wanted, self._wants_checkpoint = self._wants_checkpoint, False
        return wanted

    def is_whole_again(self) -> None:
        """Say that what the iteration had begun is put back, if nothing was forced."""
        self.is_in_step = not self._was_forced

    def came_anywhere(self, error: BaseException) -> bool:
        """Whether an interruption was raised by others, who do not wait for a good place."""
        return isinstance(error, KeyboardInterrupt) and error is not self._request

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """The body of one iteration."""
        # A signal may come between any two of these lines, hence their order.
        self._was_forced = False
        self._is_in_iteration = True
        self.is_in_step = False
        try:
            yield
            self.is_in_step = True
        finally:
            self._is_in_iteration = False
            request, self._request = self._request, None
            if request is not None:
                breaking_off.withdraw_request()
        if request is not None:
            raise request


@contextmanager
def handling_signals(handlers: dict[int, Callable[[int, Any], None]]) -> Iterator[None]:
    """Inside, these handlers; afterwards those that were there before.

    Outside the main thread, where Python allows no handlers, none are installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in handlers}
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield
    finally:
        for number, handler in previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class InterruptedException(Exception):
    """The run was asked to stop, by SIGINT or SIGTERM."""


@contextmanager
def stopping_on_signals(target: Any, only_unhandled: bool = False) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM stop `target` as soon as it is whole; SIGUSR1 makes it save.

    Args:
        target: an `IterationGuard`, or anything with its `request_stop` and `request_checkpoint`.
        only_unhandled: leave signals alone that the program handles itself; SIGINT then ends in
            `KeyboardInterrupt`, as it does without handlers.

    Raises:
        InterruptedException: on SIGINT or SIGTERM; by force if they come again after a while.
    """

    def stop(sig_num: int, stack_frame: Any) -> None:
        del stack_frame
        request: BaseException = InterruptedException(
            f"interrupted by {signal.Signals(sig_num).name}"
        )
        if only_unhandled and sig_num == signal.SIGINT:
            request = KeyboardInterrupt()
        if target.request_stop(request) is not True:
            raise request

    def make_checkpoint(sig_num: int, stack_frame: Any) -> None:
        del sig_num, stack_frame
        target.request_checkpoint()

    handlers: dict[int, Any] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        handlers[signal.SIGUSR1] = make_checkpoint
    if only_unhandled:
        unhandled = (signal.SIG_DFL, signal.default_int_handler)
        handlers = {n: one for n, one in handlers.items() if signal.getsignal(n) in unhandled}
    with handling_signals(handlers):
        yield
