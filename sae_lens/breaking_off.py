"""Places in which a signal may break work off, because whoever called puts back what was begun.

A signal handler can run between any two lines, also between two that belong together. So a request
to stop waits until the work under way is complete, or reaches one of these places: the forward pass
of a language model, waiting for data. There it is raised at once.

Handlers run in the main thread; other threads are never broken off.
"""

from __future__ import annotations

import threading


class _Thread(threading.local):
    n_open = 0
    pending: BaseException | None = None


_thread = _Thread()


class may_be_broken_off:
    """Around work that a request to stop may be raised in, or that need not begin after one."""

    def __enter__(self) -> None:
        if _thread.pending is not None:
            raise _thread.pending
        _thread.n_open += 1

    def __exit__(self, *_: object) -> None:
        _thread.n_open -= 1


def ask_to_break_off(error: BaseException) -> None:
    """Raise `error` here if this thread is in such a place, else when it comes to the next one."""
    _thread.pending = error
    if _thread.n_open > 0:
        raise error


def is_request_to_stop(error: BaseException) -> bool:
    """Whether `error` is what this thread is asked to break off with, and no fault of the work."""
    return error is _thread.pending


def withdraw_request() -> None:
    """Let work go on that was asked to break off and has not."""
    _thread.pending = None
