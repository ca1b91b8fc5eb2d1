"""Reading on when the network fails for a while; saying so clearly when the data really end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from sae_lens.breaking_off import is_request_to_stop, may_be_broken_off
from sae_lens.errors import DataSourceError

logger = logging.getLogger(__name__)

# Seconds between attempts: five more of them, over about a minute.
WAITS: tuple[float, ...] = (1, 3, 8, 20, 40)

# Errors of the libraries below `datasets` that are no OSError, by module and by name: they need not
# be installed.
_NETWORK_MODULES = ("requests", "urllib3", "httpx", "httpcore", "aiohttp", "http.client", "fsspec")
_NETWORK_NAMES = ("HfHubHTTPError", "ConnectionError", "TimeoutError", "ServerDisconnectedError",
                  "ClientError", "IncompleteRead", "FSTimeoutError", "TransportError")  # fmt: skip
_ANSWERS_WORTH_ANOTHER_TRY = (408, 409, 425, 429)


def is_of_the_network(error: BaseException) -> bool:
    """Whether an error, or one that it was made from, may be gone at the next attempt."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status >= 500 or status in _ANSWERS_WORTH_ANOTHER_TRY
        if isinstance(cause, (ConnectionError, TimeoutError)):
            return True
        kind = type(cause)
        names = {base.__name__ for base in kind.__mro__}
        if kind.__module__.startswith(_NETWORK_MODULES) and names & set(_NETWORK_NAMES):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class RetryingIterator:
    """Items of an iterator that is opened again, at the same place, when the network fails.

    Args:
        items: the iterator.
        reopen: another one, of the items that are still to come; None when they can be had once
            only.
        what: what is read, for messages.
    """

    def __init__(
        self, items: Iterator[Any], reopen: Callable[[], Iterator[Any]] | None, what: str
    ) -> None:
        self._items: Iterator[Any] | None = items
        self._reopen = reopen
        self._what = what

    def __iter__(self) -> RetryingIterator:
        return self

    def __next__(self) -> Any:
        """The next item.

        Raises:
            DataSourceError: when there is none for another reason than the end.
        """
        for wait in (*WAITS, None):
            try:
                if self._items is None and self._reopen is not None:
                    self._items = self._reopen()
                assert self._items is not None
                with may_be_broken_off():
                    return next(self._items)
            except StopIteration:
                raise
            except Exception as error:
                if is_request_to_stop(error):
                    raise
                # A generator that raised is over; the next attempt needs a new one.
                self._items = None
                if wait is None or self._reopen is None or not is_of_the_network(error):
                    raise DataSourceError(
                        f"{self._what} cannot be read any further: {type(error).__name__}: {error}"
                    ) from error
                logger.warning(
                    "Reading %s failed (%s: %s); trying again in %s s.",
                    self._what, type(error).__name__, error, wait,
                )  # fmt: skip
                with may_be_broken_off():
                    time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")
