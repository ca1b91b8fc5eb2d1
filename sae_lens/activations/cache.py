"""Activations read back from a folder that the cache runner wrote; memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset

TOKEN_IDS_COLUMN = "token_ids"
# Arrow has no bfloat16: a column of this type holds its bits.
BFLOAT16_BITS = "uint16"


def open_cached_activations(
    path: str,
    hook_name: str,
    context_size: int,
    d_in: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Dataset:
    """The cached rows, each [context_size, d_in], as a dataset in torch format.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when it has no column for the hook, or rows of another shape.
    """
    import datasets

    if not Path(path).is_dir():
        raise FileNotFoundError(
            f"There is no folder of cached activations at {path}. Make one with "
            "CacheActivationsRunner, or correct cached_activations_path."
        )
    dataset = _open_folder(path)
    if not isinstance(dataset, datasets.Dataset) or hook_name not in dataset.column_names:
        raise ValueError(
            f"The cached activations at {path} have the columns {dataset.column_names}, but not "
            f"{hook_name!r}. Cache the activations of that hook, or set hook_name to one of these."
        )
    wanted, found = (context_size, d_in), getattr(dataset.features[hook_name], "shape", None)
    if found is None or tuple(found) != wanted:
        raise ValueError(
            f"The cache at {path} holds the shape {found} a row, which does not match context_size "
            f"and d_in: {wanted}. Set them to what was cached (context_size is the length after "
            "slicing)."
        )
    columns = [hook_name]
    if TOKEN_IDS_COLUMN in dataset.column_names:
        columns.append(TOKEN_IDS_COLUMN)
    if dataset.features[hook_name].dtype == BFLOAT16_BITS:
        return dataset.with_transform(_BitsAsTensors(hook_name, dtype, device), columns=columns)
    return dataset.with_format("torch", columns=columns, device=str(device), dtype=dtype)


def _open_folder(path: str) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(path)
    except Exception as error:
        raise ValueError(
            f"The cached activations at {path} cannot be opened: a file is missing or damaged "
            f"({type(error).__name__}: {error}). Make the cache again."
        ) from error


def read_cached_rows(
    dataset: Dataset, hook_name: str, start: int, stop: int
) -> Float[Tensor, "row pos d_in"]:
    """Rows `start` to `stop` of the cache, on the CPU, in the dtype that was cached."""
    feature: Any = dataset.features[hook_name]
    rows: Any = np.empty((stop - start, *feature.shape), dtype=feature.dtype)
    filled = 0
    # The lists of arrow hold the numbers end to end; decoding them row by row is far slower.
    table: Any = dataset.with_format("arrow", columns=[hook_name])[start:stop]
    for chunk in _checked(table.column(0)).chunks:
        numbers = chunk.storage.flatten().flatten().to_numpy(zero_copy_only=False)
        rows[filled : filled + len(chunk)] = numbers.reshape(len(chunk), *feature.shape)
        filled += len(chunk)
    return _from_bits(rows) if feature.dtype == BFLOAT16_BITS else torch.from_numpy(rows)


def read_cached_token_ids(dataset: Dataset, start: int, stop: int) -> Int[Tensor, "row pos"]:
    """Token ids of rows `start` to `stop`.

    Raises:
        ValueError: when the cache was made without token ids.
    """
    if TOKEN_IDS_COLUMN not in dataset.column_names:
        raise ValueError(
            "Special tokens are to be excluded, but the cached activations were made without token "
            "ids, so it is not known which rows belong to them. Cache them again with token ids, "
            "or set exclude_special_tokens=False."
        )
    table: Any = dataset.with_format("arrow", columns=[TOKEN_IDS_COLUMN])[start:stop]
    return torch.tensor(_checked(table.column(0)).to_pylist(), dtype=torch.long)


def _checked(column: Any) -> Any:
    """The column of a file, after a look whether its parts lie within it.

    With offsets that lead elsewhere arrow would end the process.
    """
    try:
        column.validate(full=True)
    except Exception as error:
        raise ValueError(
            f"The cached activations are damaged ({error}). Make the cache again."
        ) from error
    return column


class _BitsAsTensors:
    """A dataset transform: the stored bits of bfloat16 as tensors."""

    def __init__(self, hook_name: str, dtype: torch.dtype, device: torch.device):
        self.hook_name = hook_name
        self.dtype = dtype
        self.device = device

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        bits = np.asarray(batch[self.hook_name], dtype=BFLOAT16_BITS)
        rows = _from_bits(bits).to(self.device, self.dtype)
        others = {name: torch.tensor(value) for name, value in batch.items()}
        return {**others, self.hook_name: rows}


def _from_bits(bits: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
