"""Numbers of a device that the host learns later, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LateNumber:
    """The value that a scalar tensor has now, on its way to the host.

    Args:
        scalar: a tensor of one element, on any device; may be changed in place afterwards.
    """

    def __init__(self, scalar: Tensor) -> None:
        # A copy in flight is complete when the event is. Only CUDA has copies in flight.
        self._copy = scalar.detach().to("cpu", non_blocking=True, copy=True)
        self._arrival: Any = None
        if scalar.is_cuda:
            self._arrival = torch.cuda.current_stream(scalar.device).record_event()

    def has_arrived(self) -> bool:
        """Whether `value` would not wait."""
        return self._arrival is None or bool(self._arrival.query())

    def value(self) -> float:
        """The number; waits until it has arrived."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copy.item()
