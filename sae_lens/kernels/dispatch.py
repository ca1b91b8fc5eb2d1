"""Dense or sparse: which form a training step takes, by the measured share of active entries.

Early in training half of all features may fire, and dense products are then the faster ones. The
choice has hysteresis, so that a density near the border does not switch it back and forth.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from sae_lens.kernels.determinism import allows_sparse_kernels

SparseKernels = Literal["auto", "dense", "sparse"]

# With one thread the forms break even at a share of 0.11 or more at 768 -> 3072, and at 64 -> 512
# of 0.08 (standard) or more (the others): benchmarks/bench_step.py measures it.
_SPARSE_BELOW = 0.09
_DENSE_ABOVE = 0.11
# Multiplications in the encoder's product below which the sparse form's overhead is not won back:
# with one thread the forms break even at 128 tokens of 64 dimensions and 512 features, or 1 << 22.
_SMALLEST_WORK = 1 << 23
# While dense, the share is measured once in so many steps.
_STEPS_BETWEEN_MEASUREMENTS = 10


@dataclass
class SparseChoice:
    """Whether steps take the sparse form.

    Attributes:
        mode: "auto", or a form that is forced wherever it exists.
        is_sparse: the form of the last step for which there was a choice.
        density: share of active entries as last measured; None before.
    """

    mode: SparseKernels = "auto"
    is_sparse: bool = False
    density: float | None = None
    steps_until_measurement: int = 0

    def __post_init__(self) -> None:
        check_sparse_kernels(self.mode)

    def observe(self, density: float) -> None:
        """Take note of a measured share of active entries."""
        self.density = density
        self.steps_until_measurement = _STEPS_BETWEEN_MEASUREMENTS

    def wants_measurement(self) -> bool:
        """Whether a dense step should count its active entries."""
        if self.mode != "auto":
            return False
        self.steps_until_measurement -= 1
        return self.steps_until_measurement <= 0

    def choose(self, expected_density: float | None = None) -> bool:
        """Whether the next step is sparse; `expected_density` where it is known beforehand."""
        if self.mode != "auto":
            self.is_sparse = self.mode == "sparse"
            return self.is_sparse
        density = self.density if expected_density is None else expected_density
        if density is None:
            return False
        self.is_sparse = density < (_DENSE_ABOVE if self.is_sparse else _SPARSE_BELOW)
        return self.is_sparse


def check_sparse_kernels(mode: str) -> None:
    """`ValueError` unless `mode` is one of the three."""
    if mode not in get_args(SparseKernels):
        allowed = ", ".join(get_args(SparseKernels))
        raise ValueError(f"sparse_kernels is {mode!r}; allowed are {allowed}.")


def is_worth_choosing(device: torch.device, batch: int, d_in: int, d_sae: int) -> bool:
    """Whether the sparse form may pay: on CPU from some size on.

    On CUDA it must be asked for, since where it pays has not been measured there.
    """
    return device.type == "cpu" and batch * d_in * d_sae >= _SMALLEST_WORK


def has_sparse_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are fast sparse products for this device and dtype."""
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return False
    if device.type == "cpu":
        return torch.backends.mkl.is_available()
    return device.type == "cuda" and _triton_is_installed() and allows_sparse_kernels(device)


def uses_triton(tensor: Tensor) -> bool:
    """Whether products with this tensor are taken by the Triton kernels."""
    return tensor.is_cuda


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
