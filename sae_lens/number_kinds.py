"""What counts as a number in a config: those of numpy do, truth values do not."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def is_number(value: Any) -> bool:
    """Whether `value` is a real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole_number(value: Any) -> bool:
    """Whether `value` is of a kind of integers."""
    return isinstance(value, Integral) and not isinstance(value, bool)
