"""In which order rows are served: full, mixed batches; every row of an epoch exactly once.

A pass fills the buffer, mixes it and serves batches until the part that is to stay for the next
mixing is left. When a pass over the data ends, all of what is held is served before rows of the
next epoch are mixed in; the few rows that do not fill a batch come first in the next one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.activations.buffer import ShufflingBuffer

# Adds the rows of one more language-model batch; False when these were the last of the epoch.
Feed = Callable[[ShufflingBuffer], bool]


class BatchMixer:
    """Serves batches of `batch_size` rows out of a shuffling buffer.

    The order is a function of `seed` and the epoch. Without a seed, torch's global generator is
    used.
    """

    def __init__(
        self,
        buffer: ShufflingBuffer,
        batch_size: int,
        rows_to_keep: int,
        rows_per_read: int,
        seed: int | None = None,
    ):
        self.buffer = buffer
        self.batch_size = batch_size
        self.rows_to_keep = rows_to_keep
        self.rows_per_read = rows_per_read
        self.seed = seed
        self.generator = None if seed is None else torch.Generator()
        self.epoch = 0
        self.epoch_over = False  # all rows of the epoch are read; what is held is being served
        self.rows_in_epoch = 0
        self.batches_left = 0  # in the current pass
        self.filled = False  # whether rows were read since the start or since `drop`
        self.n_passes = 0
        self._seed_epoch()

    @property
    def n_scheduled(self) -> int:
        """How many of the rows held are served in the current pass; the others stay."""
        return self.batches_left * self.batch_size

    def load(self, feed: Feed, max_reads: int | None = None) -> None:
        """Read until the buffer is full, the epoch is over or `max_reads` reads are done."""
        n_reads = 0
        self.filled = True
        while not self.epoch_over and self.buffer.n_free >= self.rows_per_read:
            if n_reads == max_reads:
                return
            held = len(self.buffer)
            more = feed(self.buffer)
            self.rows_in_epoch += len(self.buffer) - held
            n_reads += 1
            if not more:
                self._end_epoch()

    def start_pass(self, feed: Feed) -> None:
        """Fill and mix the buffer and schedule the batches of the next pass.

        Raises:
            ValueError: when a whole epoch has fewer rows than a batch.
        """
        self.n_passes += 1
        while True:
            if self.epoch_over and len(self.buffer) < self.batch_size:
                self._begin_epoch()
            self.load(feed)
            self.buffer.mix(self.generator)
            self.batches_left = self._batches_in_pass()
            if self.batches_left > 0:
                return
            if self.rows_in_epoch < self.batch_size:
                raise ValueError(
                    f"The dataset gives {self.rows_in_epoch} activations, which is less than one "
                    f"training batch of {self.batch_size}. Use more data, or a smaller "
                    "train_batch_size_tokens."
                )

    def take_batch(self) -> Float[Tensor, "batch d_in"]:
        """The next batch of the current pass; `batches_left` says whether there is one."""
        batch = self.buffer.take(self.batch_size)
        self.batches_left -= 1
        return batch

    def drop(self) -> None:
        """Forget all rows held; the epoch goes on with the rows that are read next."""
        self.buffer.clear()
        self.batches_left = 0
        self.filled = False

    def state_dict(self) -> dict[str, Tensor]:
        """Counters and generator; the rows themselves are the owner's to save."""
        state = {
            "epoch": torch.tensor(self.epoch),
            "epoch_over": torch.tensor(self.epoch_over),
            "rows_in_epoch": torch.tensor(self.rows_in_epoch),
            "batches_left": torch.tensor(self.batches_left),
            "n_pinned": torch.tensor(self.buffer.n_pinned),
            "filled": torch.tensor(self.filled),
        }
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Counterpart of `state_dict`; the rows must already be in the buffer, in their order."""
        self.epoch = int(state["epoch"])
        self.epoch_over = bool(state["epoch_over"])
        self.rows_in_epoch = int(state["rows_in_epoch"])
        self.batches_left = int(state["batches_left"])
        self.buffer.n_pinned = int(state["n_pinned"])
        self.filled = bool(state["filled"])
        if self.generator is not None and "generator" in state:
            self.generator.set_state(state["generator"].cpu())

    def _batches_in_pass(self) -> int:
        full_batches = len(self.buffer) // self.batch_size
        if self.epoch_over:
            return full_batches
        to_serve = len(self.buffer) - self.rows_to_keep
        return min(full_batches, max(1, -(-to_serve // self.batch_size)))

    def _end_epoch(self) -> None:
        if self.rows_in_epoch == 0:
            raise ValueError(
                "The dataset gives no activations at all: it is empty, every row is shorter than "
                "context_size, or only excluded tokens are left. Use other data, a smaller "
                "context_size, or fewer excluded tokens."
            )
        self.epoch_over = True
        warnings.warn(
            "All samples in the training dataset have been exhausted. What is still in the buffer "
            "is served next, then a new epoch begins with the same samples.",
            stacklevel=2,
        )

    def _begin_epoch(self) -> None:
        self.buffer.n_pinned = len(self.buffer)
        self.epoch += 1
        self.epoch_over = False
        self.rows_in_epoch = 0
        self._seed_epoch()

    def _seed_epoch(self) -> None:
        if self.generator is not None and self.seed is not None:
            self.generator.manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
