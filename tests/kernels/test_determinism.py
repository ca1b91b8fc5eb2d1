"""What is decided for CUDA when runs are to repeat themselves, with a device that is only named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sae_lens.kernels import determinism, dispatch
from sae_lens.kernels.determinism import (
    DENSE_OPERATIONS,
    SPARSE_OPERATIONS,
    Operation,
    allows_sparse_kernels,
    check_determinism,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ATOMIC = Operation("weight_gradient", "atomic", "atomic additions")


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def with_atomics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(determinism, "SPARSE_OPERATIONS", (*SPARSE_OPERATIONS, ATOMIC))
    monkeypatch.setattr(dispatch, "_triton_is_installed", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def test_without_the_switch_nothing_is_asked_or_changed(
    with_atomics: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    assert check_determinism(CUDA) == []
    assert dispatch.has_sparse_kernels(CUDA, torch.float32)


@pytest.mark.usefixtures("deterministic")
def test_kernels_with_atomic_additions_give_way_to_dense_ones(with_atomics: None) -> None:
    assert not dispatch.has_sparse_kernels(CUDA, torch.float32)
    assert allows_sparse_kernels(CPU) and not allows_sparse_kernels(CUDA)
    (note,) = check_determinism(CUDA)
    assert note.startswith("weight_gradient would not repeat itself on cuda:0")
    assert check_determinism(CPU) == []


@pytest.mark.usefixtures("deterministic")
def test_kernels_with_a_fixed_order_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_triton_is_installed", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert dispatch.has_sparse_kernels(CUDA, torch.float32)
    assert check_determinism(CUDA) == []


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("config", [None, ":4096:2"])
def test_cublas_must_have_been_told(config: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", config)
    with pytest.raises(ValueError, match="CUBLAS_WORKSPACE_CONFIG is .*':4096:8' before"):
        check_determinism(CUDA)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert check_determinism(CUDA) == []


def test_no_kernel_of_ours_uses_atomics_unless_the_table_says_so(repository: Path) -> None:
    """What is said of the Triton kernels is read from their text."""
    texts = [path.read_text() for path in (repository / "sae_lens" / "kernels").glob("triton_*.py")]
    assert texts
    uses_atomics = any(re.search(r"tl\.atomic|autotune", text) for text in texts)
    assert uses_atomics == any(operation.order == "atomic" for operation in SPARSE_OPERATIONS)


def test_the_documentation_has_the_table(repository: Path) -> None:
    text = (repository / "docs" / "resumption.md").read_text()
    for operation in (*SPARSE_OPERATIONS, *DENSE_OPERATIONS):
        assert re.search(rf"\| {re.escape(operation.name)} \| {operation.order} \|", text), (
            operation
        )
