"""Memory that a training step uses again instead of asking the system for it every time.

On CPU, fresh memory of the size of a weight costs more (page faults) than the sparse product that
fills it, so gradients whose step is done are handed back and serve the next step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Gradients of one shape that are kept at most: the encoder's and the decoder's may share one.
_SPARES_PER_KIND = 2


class Workspace:
    """Scratch memory, and spare gradients. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._scratch: dict[tuple[torch.dtype, torch.device, str], Tensor] = {}
        self._spares: dict[tuple[Any, ...], list[Tensor]] = {}

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()

    def __deepcopy__(self, _memo: dict[int, Any]) -> Workspace:
        return Workspace()

    def scratch(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, name: str = ""
    ) -> Tensor:
        """Uninitialised memory that is valid until the next call with these dtype and name."""
        key = (dtype, device, name)
        size = torch.Size(shape).numel()
        if key not in self._scratch or self._scratch[key].numel() < size:
            self._scratch[key] = torch.empty(size, dtype=dtype, device=device)
        return self._scratch[key][:size].view(shape)

    def take_gradient(self, parameter: Tensor) -> Tensor:
        """Uninitialised memory of the parameter's shape and layout; the caller owns it."""
        spares = self._spares.get(_kind(parameter))
        if spares:
            return spares.pop()
        return torch.empty_like(parameter, memory_format=torch.preserve_format).detach()

    def give_back(self, gradient: Tensor) -> None:
        """Keep a gradient that nobody reads any more."""
        spares = self._spares.setdefault(_kind(gradient), [])
        if len(spares) < _SPARES_PER_KIND and all(
            spare.data_ptr() != gradient.data_ptr() for spare in spares
        ):
            spares.append(gradient.detach())

    def clear(self) -> None:
        """Let go of everything."""
        self._scratch.clear()
        self._spares.clear()


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
