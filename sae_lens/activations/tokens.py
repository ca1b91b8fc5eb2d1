"""Token streams: one pass over a dataset as rows of `context_size` tokens.

`RowReader` hands out the values of one column, `TokenStream` turns them into rows by way of a
packer. Both know where they stand, so that a pass can be resumed: at once for datasets that can be
indexed, through the dataset's own state for streaming ones, by skipping for any other iterable.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from sae_lens.activations.retrying import RetryingIterator

TOKENIZED_COLUMNS = ("tokens", "input_ids")
TEXT_COLUMNS = ("text", "problem")

# Rows read at once from a dataset that can be sliced: one slice costs about as much as one row.
_ROWS_PER_READ = 256


class RowReader:
    """The values of one column of a dataset, in order, once."""

    def __init__(self, dataset: Any, column: str, state: dict[str, Tensor] | None = None):
        self.dataset = own_pass(dataset)
        self.column = column
        self.taken = 0
        self._values = self._open(state or {})

    def __iter__(self) -> RowReader:
        return self

    def __next__(self) -> Any:
        value = next(self._values)
        self.taken += 1
        return value

    def state_dict(self) -> dict[str, Tensor]:
        """How many rows were taken; for streaming datasets also the dataset's own state."""
        state = {"taken": torch.tensor(self.taken)}
        if self.taken > 0 and _tells_its_position(self.dataset):
            text = json.dumps(self.dataset.state_dict())
            state["dataset_state"] = torch.frombuffer(
                bytearray(text.encode()), dtype=torch.uint8
            ).clone()
        return state

    def _open(self, state: dict[str, Tensor]) -> Iterator[Any]:
        """The values behind `state`; read on at the same place when the network fails."""
        values = self._read(state)
        if iter(self.dataset) is self.dataset:
            return RetryingIterator(values, None, "the dataset")
        return RetryingIterator(values, self._read_on, "the dataset")

    def _read_on(self) -> Iterator[Any]:
        return self._read(self.state_dict())

    def _read(self, state: dict[str, Tensor]) -> Iterator[Any]:
        start = int(state.get("taken", 0))
        self.taken = start
        if _can_index(self.dataset):
            return self._read_by_index(start)
        if "dataset_state" in state:
            # The state sticks to the object it is loaded into; later passes must not see it.
            self.dataset = copy.deepcopy(self.dataset)
            self.dataset.load_state_dict(json.loads(bytes(state["dataset_state"].tolist())))
            start = 0
        rows = itertools.islice(iter(self.dataset), start, None)
        return (row[self.column] for row in rows)

    def _read_by_index(self, start: int) -> Iterator[Any]:
        if not is_huggingface_dataset(self.dataset):
            for index in range(start, len(self.dataset)):
                yield self.dataset[index][self.column]
            return
        only_column = self.dataset.select_columns([self.column])
        for first in range(start, len(only_column), _ROWS_PER_READ):
            yield from only_column[first : first + _ROWS_PER_READ][self.column]


class Packer(Protocol):
    """What `TokenStream` needs: sequences in, rows of `context_size` tokens out."""

    def push(self, tokens: Tensor) -> None:
        """Take the next sequence, [n_tokens]."""
        ...

    def pop(self) -> Tensor | None:
        """The next row, or None when another sequence is needed."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What is left over."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Counterpart of `state_dict`."""
        ...


class TokenStream:
    """One pass over a dataset as rows of tokens, each [context_size]."""

    def __init__(
        self,
        reader: RowReader,
        values: Iterator[Any],
        encode: Callable[[Any], Tensor],
        packer: Packer,
    ):
        """Args: `values` are those of `reader`, possibly counted on the way by their owner."""
        self.reader = reader
        self.packer = packer
        self._values = values
        self._encode = encode

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> Tensor:
        while (row := self.packer.pop()) is None:
            self.packer.push(self._encode(next(self._values)))
        return row

    def state_dict(self) -> dict[str, Tensor]:
        """Where the pass stands, as tensors; empty before the first row."""
        if self.reader.taken == 0:
            return {}
        packer = {f"packer.{name}": value for name, value in self.packer.state_dict().items()}
        return {**self.reader.state_dict(), **packer}


def packer_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The packer's part of a `TokenStream.state_dict`."""
    prefix = "packer."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def find_tokens_column(dataset: Any) -> tuple[str, bool, Any]:
    """(column, whether it holds tokens, its first value) of a dataset, decided by its first row.

    Raises:
        ValueError: for an empty dataset, a dictionary of splits, or one without a usable column.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"This is a dictionary of splits ({list(dataset)}), not a dataset. Choose one of them, "
            "for example dataset['train']."
        )
    try:
        first = next(iter(own_pass(dataset)))
    except StopIteration:
        raise ValueError(
            "The dataset is empty: it has no rows. Check dataset_path and its split, or pass a "
            "dataset with at least one row."
        ) from None
    for column in (*TOKENIZED_COLUMNS, *TEXT_COLUMNS):
        if column in first:
            return column, column in TOKENIZED_COLUMNS, first[column]
    raise ValueError(
        f"The dataset has the columns {list(first)}, none of which can be used. It needs one of "
        "'tokens' or 'input_ids' (tokens) or 'text' or 'problem' (text); rename a column with "
        "dataset.rename_column."
    )


def as_token_row(value: Any) -> Tensor:
    """Token ids of a dataset row (list, array or tensor) as a long tensor, [n_tokens]."""
    return torch.as_tensor(value, dtype=torch.long)


def is_huggingface_dataset(dataset: Any) -> bool:
    """Whether this is an in-memory or memory-mapped `datasets.Dataset`."""
    datasets = sys.modules.get("datasets")  # not imported: then nothing can be one of its objects
    return datasets is not None and isinstance(dataset, datasets.Dataset)


def number_of_rows(dataset: Any) -> int | None:
    """The number of rows where the dataset knows it."""
    return len(dataset) if hasattr(dataset, "__len__") else None


def own_pass(dataset: Any) -> Any:
    """A dataset that can be iterated without disturbing, or being disturbed by, other passes.

    A streaming dataset of Hugging Face keeps its position in itself: two live iterators of one
    object write to the same place, and the second may begin in the middle.
    """
    return copy.deepcopy(dataset) if hasattr(dataset, "_ex_iterable") else dataset


def _tells_its_position(dataset: Any) -> bool:
    """Whether a streaming dataset's own state is exact; with a shuffling window it is not."""
    if _can_index(dataset) or not hasattr(dataset, "state_dict"):
        return False
    parts = [getattr(dataset, "_ex_iterable", None)]
    while parts:
        part = parts.pop()
        if type(part).__name__.startswith("BufferShuffled"):
            return False
        inner = [getattr(part, "ex_iterable", None), *(getattr(part, "ex_iterables", None) or [])]
        parts += [p for p in inner if p is not None]
    return True


def _can_index(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
