"""Running a model on smaller batches when its memory does not suffice for the whole one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class HalvingRunner:
    """Applies a function to a batch, in pieces that are halved whenever memory runs out.

    A size that was too large is not tried again.
    """

    def __init__(self) -> None:
        self.largest: int | None = None

    def __call__(self, run: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """`run(batch)`, put together from pieces where need be.

        Args:
            run: a function that treats the rows of its argument one by one.
            batch: [row, ...].

        Raises:
            MemoryError, RuntimeError: the function's own, when a single row does not fit.
        """
        while True:
            size = len(batch) if self.largest is None else min(self.largest, len(batch))
            try:
                if size == len(batch):
                    return run(batch)
                return torch.cat([run(piece) for piece in batch.split(size)])
            except (MemoryError, RuntimeError) as error:
                if size <= 1 or not is_out_of_memory(error):
                    raise
            # Outside of the handler, whose traceback would keep the tensors of the attempt.
            self.largest = size // 2
            logger.warning(
                "The language model ran out of memory on %d prompts at once; it gets %d from now "
                "on. What the SAE is trained on does not change.",
                size,
                self.largest,
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on any device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "not enough memory" in text or "can't allocate" in text
