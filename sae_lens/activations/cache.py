"""Activations read back from a folder that the cache runner wrote; memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset

TOKEN_IDS_COLUMN = "token_ids"


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
    dataset = datasets.load_from_disk(path)
    if not isinstance(dataset, datasets.Dataset) or hook_name not in dataset.column_names:
        raise ValueError(
            f"The cached activations at {path} have the columns {dataset.column_names}, but not "
            f"{hook_name!r}. Cache the activations of that hook, or set hook_name to one of these."
        )
    wanted, found = (context_size, d_in), getattr(dataset.features[hook_name], "shape", None)
    if found is None or tuple(found) != wanted:
        raise ValueError(
            f"The cached activations at {path} have the shape {found} a row, but context_size and "
            f"d_in ask for {wanted}. Set context_size and d_in to what was cached (context_size is "
            "the length after slicing)."
        )
    columns = [hook_name]
    if TOKEN_IDS_COLUMN in dataset.column_names:
        columns.append(TOKEN_IDS_COLUMN)
    return dataset.with_format("torch", columns=columns, device=str(device), dtype=dtype)


def read_cached_rows(
    dataset: Dataset, hook_name: str, start: int, stop: int
) -> Float[Tensor, "row pos d_in"]:
    """Rows `start` to `stop` of the cache, in the dataset's torch format."""
    shape = dataset.features[hook_name].shape
    rows = dataset.select_columns([hook_name])[start:stop][hook_name]
    return rows.reshape(stop - start, *shape)


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
    ids = dataset.with_format(None).select_columns([TOKEN_IDS_COLUMN])[start:stop]
    return torch.tensor(ids[TOKEN_IDS_COLUMN], dtype=torch.long)
