"""Stopping between two iterations instead of in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class IterationGuard:
    """Puts off a request to stop until the iteration that is under way is complete.

    Between iterations everything is in step: weights, optimiser, schedules, counters and the place
    in the data.
    """

    def __init__(self) -> None:
        self._is_in_iteration = False
        self._request: BaseException | None = None

    def request_stop(self, error: BaseException) -> bool:
        """Have `error` raised at the end of the current iteration.

        Returns:
            False outside an iteration, or when there was a request already: the caller should then
            raise at once.
        """
        if not self._is_in_iteration or self._request is not None:
            return False
        self._request = error
        return True

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """The body of one iteration."""
        self._is_in_iteration = True
        try:
            yield
        finally:
            self._is_in_iteration = False
            request, self._request = self._request, None
        if request is not None:
            raise request
