"""Which operations of a training step repeat themselves bit for bit on CUDA, and what to do if not.

With `torch.use_deterministic_algorithms(True)` torch takes forms of its own operations that add in
a fixed order, or refuses those that have none. It knows nothing of kernels in Triton, so what is
said of them here follows from how they are written; the table is in docs/resumption.md. It is
derived from the code and from torch's documentation: none of it has been run on a GPU.
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import torch

# Sums in a fixed order; atomic additions, whose order changes; torch's own choice by its switch.
Order = Literal["fixed", "atomic", "by torch"]

# Settings of cuBLAS with which its products repeat themselves.
_WORKSPACES = (":4096:8", ":16:8")


class Operation(NamedTuple):
    """One operation of a step on CUDA."""

    name: str
    order: Order
    note: str


SPARSE_OPERATIONS = (
    Operation("sparse_decode", "fixed", "Triton: one program adds up one row's entries in turn"),
    Operation("weight_gradient", "fixed", "Triton: one program adds up one feature's entries"),
    Operation("entry_products", "fixed", "Triton: one program adds up one entry's products"),
    Operation("sums over rows and columns of entries", "by torch", "index_add"),
    Operation("order of entries by feature", "fixed", "a stable sort"),
    Operation("places of entries above a threshold", "fixed", "running counts, searched"),
)
DENSE_OPERATIONS = (
    Operation("matrix products", "by torch", "cuBLAS, which needs CUBLAS_WORKSPACE_CONFIG"),
    Operation("gradients of gathers and selections", "by torch", "scatter_add, index_add"),
    Operation("counts of firing features", "fixed", "whole numbers: no order changes their sum"),
    Operation("Adam", "fixed", "each weight by itself"),
    Operation("draws of resampled features", "by torch", "multinomial: drawn on the CPU instead"),
)


def wants_determinism(device: torch.device) -> bool:
    """Whether work on this device must repeat itself and would not by default."""
    return device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def allows_sparse_kernels(device: torch.device) -> bool:
    """Whether the sparse form may be taken there; the dense one is the form that repeats itself."""
    return not wants_determinism(device) or not unrepeatable(SPARSE_OPERATIONS)


def unrepeatable(operations: tuple[Operation, ...]) -> list[Operation]:
    """Those that give other last digits each time, whatever torch is told."""
    return [operation for operation in operations if operation.order == "atomic"]


def check_determinism(device: torch.device) -> list[str]:
    """What to know of training on a device that is to repeat itself; nothing where that is sure.

    Raises:
        ValueError: when it cannot, because cuBLAS was not told to.
    """
    if not wants_determinism(device):
        return []
    config = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if config not in _WORKSPACES and not torch.is_deterministic_algorithms_warn_only_enabled():
        raise ValueError(
            "torch.use_deterministic_algorithms(True) is set, but CUBLAS_WORKSPACE_CONFIG is "
            f"{config!r}: with it, products on CUDA give other last digits each time. Set it to "
            f"{_WORKSPACES[0]!r} before the process first uses the GPU, or train without "
            "deterministic algorithms."
        )
    notes = [
        f"{operation.name} would not repeat itself on {device} ({operation.note}); steps are dense."
        for operation in unrepeatable(SPARSE_OPERATIONS)
    ]
    notes += [
        f"{operation.name} does not repeat itself on {device} ({operation.note})."
        for operation in unrepeatable(DENSE_OPERATIONS)
    ]
    return notes
