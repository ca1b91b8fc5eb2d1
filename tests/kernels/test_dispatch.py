from __future__ import annotations

import pytest
import torch

from sae_lens.kernels.dispatch import SparseChoice, has_sparse_kernels, is_worth_choosing

CPU = torch.device("cpu")


def test_auto_waits_for_a_measurement() -> None:
    choice = SparseChoice()
    assert not choice.choose()
    assert choice.wants_measurement()
    choice.observe(0.01)
    assert choice.choose()


def test_auto_has_hysteresis() -> None:
    choice = SparseChoice()
    decisions = []
    for density in (0.5, 0.1, 0.04, 0.1, 0.5, 0.1):
        choice.observe(density)
        decisions.append(choice.choose())
    assert decisions == [False, False, True, True, False, False]


def test_a_density_known_beforehand_is_used() -> None:
    assert SparseChoice().choose(expected_density=0.01)
    assert not SparseChoice().choose(expected_density=0.5)


def test_dense_steps_measure_now_and_then() -> None:
    choice = SparseChoice()
    measured = []
    for _ in range(25):
        measured.append(choice.wants_measurement())
        if measured[-1]:
            choice.observe(0.5)
    assert [i for i, yes in enumerate(measured) if yes] == [0, 10, 20]


def test_forced() -> None:
    assert SparseChoice("sparse").choose(expected_density=0.9)
    assert not SparseChoice("dense").choose(expected_density=0.0)
    with pytest.raises(ValueError, match="allowed are auto, dense, sparse"):
        SparseChoice("fast")  # type: ignore[arg-type]


def test_small_steps_and_half_precision_are_dense() -> None:
    assert not is_worth_choosing(CPU, batch=128, d_in=64, d_sae=512)
    assert is_worth_choosing(CPU, batch=1024, d_in=64, d_sae=512)
    assert is_worth_choosing(CPU, batch=1024, d_in=768, d_sae=12288)
    assert not is_worth_choosing(torch.device("cuda"), batch=1024, d_in=768, d_sae=12288)
    assert not has_sparse_kernels(CPU, torch.float16)
