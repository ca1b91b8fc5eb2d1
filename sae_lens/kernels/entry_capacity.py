"""How many active entries a step makes room for, where the host does not wait to count them.

The device counts, and the host learns the number two steps later. It makes room for half as many
again as in the fullest of the last batches. How much room there is changes no result, as long as
there is enough. A batch for which there was not is left out (`ActiveSet.is_incomplete`), the host
says so when it learns of it, and there is more room from then on.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, tensor

from sae_lens.late_numbers import LateNumber

logger = logging.getLogger(__name__)

_SPARE = 1.5
_LEAST = 256
_BATCHES_REMEMBERED = 8
# The device has this many steps of work while the host waits for a number, if it ever does. Counted
# in steps, not by whether it has arrived, so that a run that is repeated makes the same room.
_STEPS_BEHIND = 2


@dataclass(frozen=True)
class _Count:
    """The entries of a batch that had a certain room."""

    number: LateNumber
    capacity: int
    n_positions: int


class EntryCapacity:
    """Room for the active entries of one matrix of pre-activations. Copies and pickles are new.

    Attributes:
        densities: shares of the matrix that were active in the last batches known.
        underway: counts that the host does not know yet.
        n_left_out: batches that are known to have been left out.
    """

    def __init__(self) -> None:
        self.densities: tuple[float, ...] = ()
        self.underway: tuple[_Count, ...] = ()
        self.n_left_out = 0

    def __reduce__(self) -> tuple[type[EntryCapacity], tuple[()]]:
        return EntryCapacity, ()

    def __deepcopy__(self, _memo: dict[int, Any]) -> EntryCapacity:
        return EntryCapacity()

    def room(self, n_positions: int) -> int | None:
        """For how many entries the next batch gets room; None while nothing is known.

        Args:
            n_positions: how many entries the matrix has.
        """
        while len(self.underway) >= _STEPS_BEHIND:
            first, *rest = self.underway
            self.underway = tuple(rest)
            self._learn(first)
        if not self.densities:
            return None
        wanted = math.ceil(_SPARE * max(self.densities) * n_positions) + _LEAST
        # few different sizes, which memory and kernels for one of them serve for long
        step = 1 << max(wanted.bit_length() - 4, 0)
        return min(-(-wanted // step) * step, n_positions)

    def room_for(self, count: Tensor, n_positions: int) -> int:
        """The same, for a batch that has `count` entries; waits for the first batch of all."""
        if not self.densities and not self.underway:
            self._learn(_Count(LateNumber(count), n_positions, n_positions))
        capacity = self.room(n_positions)
        assert capacity is not None
        self.observe(count, capacity, n_positions)
        return capacity

    def observe(self, count: Tensor, capacity: int, n_positions: int) -> None:
        """Take note of a batch with `count` entries (scalar tensor) and room for `capacity`."""
        self.underway = (*self.underway, _Count(LateNumber(count), capacity, n_positions))

    def _learn(self, count: _Count) -> None:
        n = count.number.value()
        known = (*self.densities, n / count.n_positions)
        self.densities = known[-_BATCHES_REMEMBERED:]
        if n > count.capacity:
            self.n_left_out += 1
            logger.warning(
                "A batch was left out: there was room for %d active entries, and it had %d or "
                "more. There is room for more from now on; %d batches have been left out so far.",
                count.capacity,
                n,
                self.n_left_out,
            )

    def state_dict(self) -> dict[str, Any]:
        """All of it in plain numbers (waits for those that are underway)."""
        underway = [(c.number.value(), c.capacity, c.n_positions) for c in self.underway]
        return {
            "densities": list(self.densities),
            "underway": [list(count) for count in underway],
            "n_left_out": self.n_left_out,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.densities = tuple(state["densities"])
        self.underway = tuple(
            _Count(LateNumber(tensor(number)), capacity, n_positions)
            for number, capacity, n_positions in state["underway"]
        )
        self.n_left_out = state["n_left_out"]
