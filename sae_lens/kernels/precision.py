"""Dtypes of sums and products; autocast, on devices that have it and on those that do not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def sum_dtype(values: Tensor) -> torch.dtype:
    """The dtype in which values are summed: float32 for half precision, else their own."""
    return torch.float32 if values.dtype in (torch.bfloat16, torch.float16) else values.dtype


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of x is taken: autocast's, where that is switched on."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, operations on x's device are taken in the dtypes that they are given."""
    if torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
