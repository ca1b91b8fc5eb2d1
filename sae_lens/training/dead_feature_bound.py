"""How many features can be dead, known to the host without waiting for the device.

A feature dies after a long silence, so whoever looks how long each has been silent knows which can
be dead some steps later. That number travels to the host while training goes on, and is used when
it has certainly arrived.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sae_lens.late_numbers import LateNumber

_STEPS_BETWEEN_COUNTS = 10
# A count is used until the one after it has arrived; and a step may be taken back.
_HORIZON = 2 * _STEPS_BETWEEN_COUNTS + 2


class DeadFeatureBound:
    """An upper bound for the number of dead features.

    Args:
        may_look: whether the host may simply look, and needs no bound; if it is None, on the CPU.
    """

    def __init__(self, may_look: bool | None = None) -> None:
        self._may_look = may_look
        self._counted: Tensor | None = None
        self._known: int | None = None
        self._underway: LateNumber | None = None
        self._steps_until_count = 0

    def of_step(self, silence: Tensor, dead_within: Callable[[int], Tensor]) -> int | None:
        """The bound for the next step, to be asked for once a step; None where none is needed.

        Args:
            silence: of the features, counted up in place. Another tensor than before means that its
                values have nothing to do with those before.
            dead_within: says which features can be dead within a number of steps from now.
        """
        if silence.device.type == "cpu" if self._may_look is None else self._may_look:
            return None
        if silence is not self._counted:
            self._counted = silence
            self._start_count(dead_within)
            self._take_count()
            self._start_count(dead_within)
        elif self._steps_until_count == 0:
            self._take_count()
            self._start_count(dead_within)
        self._steps_until_count -= 1
        return self._known

    def _start_count(self, dead_within: Callable[[int], Tensor]) -> None:
        self._underway = LateNumber(dead_within(_HORIZON).sum())
        self._steps_until_count = _STEPS_BETWEEN_COUNTS

    def _take_count(self) -> None:
        assert self._underway is not None
        self._known = int(self._underway.value())
