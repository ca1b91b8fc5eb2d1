"""The shuffling buffer: one preallocated tensor, filled, mixed and served in place.

Rows never move when they are mixed: what is permuted is a queue of row numbers. Serving gathers the
next rows of the queue into the training batch, and the slots that become free are overwritten by
the next rows that arrive. So each row is written once and read once, and there is never a second
copy of the buffer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Rows converted or moved at once, where they cannot be copied directly. Bounds temporary memory.
_CHUNK = 256


class ShufflingBuffer:
    """Holds up to `capacity` rows of `d_in` values and serves them in a mixed order."""

    def __init__(self, capacity: int, d_in: int, dtype: torch.dtype, device: torch.device):
        self.capacity = capacity
        self.d_in = d_in
        self.dtype = dtype
        self.device = device
        # How many rows at the front of the queue stay there when the queue is mixed: the rest of
        # one epoch, to be served before the next one's rows.
        self.n_pinned = 0
        self._rows: Tensor | None = None
        self._queue = torch.empty(0, dtype=torch.long)  # slots of the rows held, in serving order
        self._free = torch.arange(capacity)

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def n_free(self) -> int:
        """How many more rows fit."""
        return len(self._free)

    @property
    def queue(self) -> Tensor:
        """Slots of the rows held in serving order, [n_held]; slots are given out from 0 upwards."""
        return self._queue

    def add(self, rows: Float[Tensor, "*shape d_in"], scale: float | None = None) -> None:
        """Append rows, converted to the buffer's dtype and device, times `scale` when it is given.

        Args:
            rows: any number of leading axes; row-major order.
            scale: factor applied to the stored values.

        Raises:
            ValueError: when the rows do not fit.
        """
        n = rows.numel() // self.d_in
        if n > self.n_free:
            raise ValueError(f"{n} rows do not fit: {self.n_free} of {self.capacity} are free.")
        slots = self._free[:n]
        self._write(slots, rows, scale)
        self._free, self._queue = self._free[n:], torch.cat([self._queue, slots])

    def take_back(self, n_held: int) -> None:
        """Forget the rows that were added after the first `n_held`, in the order of adding."""
        added, self._queue = self._queue[n_held:], self._queue[:n_held]
        self._free = torch.cat([added, self._free])

    def mix(self, generator: torch.Generator | None) -> None:
        """Permute the serving order of all rows that are not pinned."""
        n = len(self) - self.n_pinned
        order = torch.randperm(n, generator=generator) + self.n_pinned
        self._queue = torch.cat([self._queue[: self.n_pinned], self._queue[order]])

    def take(self, n: int) -> Float[Tensor, "n d_in"]:
        """Remove the next `n` rows and return them as a tensor of their own."""
        slots = self._queue[:n]
        rows = self._storage().index_select(0, slots.to(self.device))
        self._queue, self._free = self._queue[n:], torch.cat([self._free, slots])
        self.n_pinned = max(0, self.n_pinned - n)
        return rows

    def clear(self) -> None:
        """Forget all rows; the memory is kept."""
        self.n_pinned = 0
        self._queue = torch.empty(0, dtype=torch.long)
        self._free = torch.arange(self.capacity)

    def release(self) -> None:
        """Forget all rows and give the memory back."""
        self.clear()
        self._rows = None

    def arranged(self) -> Float[Tensor, "n_held d_in"]:
        """The rows in serving order: a view of the buffer, valid until rows are added or cleared.

        Reorders the rows in place, a chunk at a time: the rows that belong into a stretch of slots
        are gathered, those that stood there move to the slots this vacates.
        """
        rows, n_held = self._storage(), len(self)
        place = torch.full((self.capacity,), -1)  # slot -> place in the queue
        place[self._queue] = torch.arange(n_held)
        for start in range(0, n_held, _CHUNK):
            self._arrange_stretch(start, min(start + _CHUNK, n_held), place)
        self._free = torch.arange(n_held, self.capacity)
        return rows[:n_held]

    def _arrange_stretch(self, start: int, stop: int, place: Tensor) -> None:
        """Bring the rows that are `start` to `stop` in the queue into the slots of that number."""
        targets = torch.arange(start, stop)
        sources = self._queue[start:stop].clone()
        if torch.equal(targets, sources):
            return
        rows = self._storage()
        wanted = rows.index_select(0, sources.to(self.device))
        displaced = targets[place[targets] >= stop]
        vacated = sources[sources >= stop]
        homes = vacated[: len(displaced)]
        moved = rows.index_select(0, displaced.to(self.device))
        rows.index_copy_(0, homes.to(self.device), moved)
        rows[start:stop] = wanted
        places = place[displaced]
        place[vacated] = -1
        place[homes] = places
        place[targets] = targets
        self._queue[places] = homes
        self._queue[start:stop] = targets

    def _storage(self) -> Tensor:
        if self._rows is None:
            self._rows = torch.empty(self.capacity, self.d_in, dtype=self.dtype, device=self.device)
        return self._rows

    def _write(self, slots: Tensor, rows: Tensor, scale: float | None) -> None:
        storage = self._storage()
        as_stored = rows.dtype == self.dtype and rows.device == storage.device
        if as_stored and scale is None and rows.is_contiguous():
            storage.index_copy_(0, slots.to(self.device), rows.view(-1, self.d_in))
            return
        # One prompt at a time where there is a prompt axis: a slice of it need not be contiguous.
        pieces = rows.split(1) if rows.ndim > 2 else rows.split(_CHUNK)
        start = 0
        for piece in pieces:
            piece = piece.reshape(-1, self.d_in).to(device=storage.device, dtype=self.dtype)
            if scale is not None:
                piece = piece * scale
            piece_slots = slots[start : start + len(piece)].to(self.device)
            storage.index_copy_(0, piece_slots, piece)
            start += len(piece)
