"""Shapes in signatures are checked while tests run, see `make shapes`.

jaxtyping's own checkers look at every annotation; this one looks at tensors alone, so that tests
can pass fakes for models and wrong values on purpose.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_args

from jaxtyping import AbstractArray
from torch import Tensor


def names_a_shape(hint: Any) -> bool:
    """Whether an annotation is a shaped tensor, or a union with one."""
    members = get_args(hint) or (hint,)
    return any(isinstance(m, type) and issubclass(m, AbstractArray) for m in members)


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A type checker for `jaxtyping.install_import_hook`."""
    hints = {name: hint for name, hint in function.__annotations__.items() if names_a_shape(hint)}
    if not hints:
        return function
    signature = inspect.signature(function)

    def check(name: str, value: Any) -> None:
        if name in hints and isinstance(value, Tensor) and not isinstance(value, hints[name]):
            raise TypeError(f"{name} is {tuple(value.shape)}, not {hints[name]}")

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check(name, value)
        result = function(*args, **kwargs)
        check("return", result)
        return result

    return checked
