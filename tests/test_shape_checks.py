"""The checker behind `make shapes` sees wrong shapes and lets what is no tensor pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.shape_checks import check_shapes


@jaxtyped(typechecker=check_shapes)
def multiply(
    x: Float[Tensor, "batch d_in"], w: Float[Tensor, "d_in d_sae"], factor: float | None = None
) -> Float[Tensor, "batch d_sae"]:
    return (x @ w) * (1 if factor is None else factor)


@jaxtyped(typechecker=check_shapes)
def forget_an_axis(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
    return x.sum(0)


def test_right_shapes_pass() -> None:
    assert multiply(torch.zeros(2, 3), torch.zeros(3, 4)).shape == (2, 4)


def test_wrong_values_of_other_kinds_pass() -> None:
    factor: Any = torch.ones(4)  # no float, but no shaped argument either
    assert multiply(torch.zeros(2, 3), torch.zeros(3, 4), factor).shape == (2, 4)


def test_axes_of_one_name_must_agree() -> None:
    with pytest.raises(TypeCheckError, match="parameters"):
        multiply(torch.zeros(2, 3), torch.zeros(5, 4))


def test_wrong_results_are_seen() -> None:
    with pytest.raises(TypeCheckError, match="return value"):
        forget_an_axis(torch.zeros(2, 3))
