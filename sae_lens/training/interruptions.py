"""Stopping, and making checkpoints, between two iterations instead of in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class IterationGuard:
    """Puts off a request to stop until the iteration that is under way is complete.

    Between iterations everything is in step: weights, optimiser, schedules, counters and the place
    in the data.

    Attributes:
        is_in_step: whether that holds now: true between iterations and at the end of one, false
            before the first one and after one that was broken off.
    """

    def __init__(self) -> None:
        self.is_in_step = False
        self._is_in_iteration = False
        self._request: BaseException | None = None
        self._wants_checkpoint = False

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

    def request_checkpoint(self) -> None:
        """Have a checkpoint made at the end of the current iteration, or of the next."""
        self._wants_checkpoint = True

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was requested since this was last asked."""
        wanted, self._wants_checkpoint = self._wants_checkpoint, False
        return wanted

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """The body of one iteration."""
        # A signal may come between any two of these lines, hence their order.
        self._is_in_iteration = True
        self.is_in_step = False
        try:
            yield
            self.is_in_step = True
        finally:
            self._is_in_iteration = False
            request, self._request = self._request, None
        if request is not None:
            raise request
