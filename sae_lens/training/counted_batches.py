"""Batches of any provider, counted, so that another process can come to the same place.

How that is done depends on what the provider offers, the quickest way first:

- a `state_dict` and a `load_state_dict`: its own state is saved and given back;
- a function of one argument: it is called with the number of batches to leave out;
- a function without arguments: it gives the batches from the start, and those before are skipped;
- any iterable: its batches before are drawn again and dropped, with the global random generators as
  they stood at the first one.

With each but the first, the last batch before is compared, by a checksum, with what it was then: a
provider that gives others cannot be gone on with, and that is said instead of trained on.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sae_lens.training.random_states import random_state, set_random_state
from sae_lens.training.resume_files import pack_state

logger = logging.getLogger(__name__)


class CountedBatches:
    """An iterator over a provider's batches that can be saved.

    Args:
        provider: an iterable, or a function that gives one: from the start, or without a number of
            batches at the start if it takes such an argument.

    Raises:
        TypeError: when it is neither.
    """

    def __init__(self, provider: Any) -> None:
        if not isinstance(provider, Iterable) and not callable(provider):
            raise TypeError(
                f"The data provider is a {type(provider).__name__}; it must be an iterable of "
                "batches, a function that gives one, or a store with next_batch."
            )
        self._provider: Any = provider
        self._batches: Iterator[Tensor] | None = None
        self._random_at_start: dict[str, Any] | None = None
        self._last: Tensor | None = None
        self.n_taken = 0

    def __iter__(self) -> CountedBatches:
        return self

    def __next__(self) -> Tensor:
        if self._batches is None:
            self._random_at_start = random_state()
            self._batches = self._from(0)
        batch = next(self._batches)
        self._last = batch
        self.n_taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken, a checksum of the last, and the provider's own state."""
        return {
            "n_taken": self.n_taken,
            "last": None if self._last is None else checksum_of(self._last),
            "random_at_start": self._random_at_start,
            "provider": self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Come to the place of a `state_dict`; random generators are left somewhere.

        Raises:
            ValueError: when the provider gives other batches than then, or fewer.
        """
        self.n_taken, self._random_at_start = int(state["n_taken"]), state["random_at_start"]
        if self._random_at_start is None:
            return  # nothing was taken
        if state["provider"] is not None and hasattr(self._provider, "load_state_dict"):
            self._provider.load_state_dict(state["provider"])
            self._batches = self._from(0)
            return
        set_random_state(self._random_at_start)
        start = max(self.n_taken - 1, 0) if self._takes_number() else 0
        self._batches = self._from(start)
        for taken in range(start, self.n_taken):
            self._last = next(self._batches, None)
            if self._last is None:
                raise ValueError(
                    f"The data provider ended after {taken} batches, but {self.n_taken} were taken "
                    "before the checkpoint. Pass one that begins at the start of the same data."
                )
        if self._last is not None and checksum_of(self._last) != state["last"]:
            raise ValueError(
                f"Batch {self.n_taken} of the data provider is not what it was when the checkpoint "
                "was made, so training cannot go on exactly. Pass a provider that begins at the "
                "start and gives the same batches each time (with a random generator of its own, "
                "if it draws any), or one with state_dict and load_state_dict."
            )

    def _from(self, n_skipped: int) -> Iterator[Tensor]:
        if isinstance(self._provider, Iterable):
            return iter(self._provider)
        return iter(self._provider(n_skipped) if self._takes_number() else self._provider())

    def _takes_number(self) -> bool:
        if isinstance(self._provider, Iterable):
            return False
        return len(inspect.signature(self._provider).parameters) > 0

    def _own_state(self) -> Any:
        if not hasattr(self._provider, "load_state_dict"):
            return None
        state = self._provider.state_dict()
        try:
            pack_state(state)
        except TypeError as error:
            logger.warning(
                "The data provider's state cannot be saved (%s), so its batches are counted: to go "
                "on, they will be drawn again from the start.",
                error,
            )
            return None
        return state


def checksum_of(batch: Tensor) -> str:
    """SHA-256 of a tensor's values, shape and dtype."""
    values = batch.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
