"""Which fields of a config its maker named, whatever the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from sae_lens.config.early_names import unknown_names_message, with_current_names

AnyConfig = TypeVar("AnyConfig")


def remember_named_fields(cls: type[AnyConfig]) -> type[AnyConfig]:
    """Let a config know which fields its maker named, and let it take early names.

    A value that equals a default can be told from one that was not given only where the arguments
    arrive.
    """
    build: Callable[..., None] = cls.__init__
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]

    @wraps(build)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs = with_current_names(kwargs)
        unknown = kwargs.keys() - set(names)
        if unknown:
            raise TypeError(unknown_names_message(sorted(unknown), names, cls.__name__))
        self._named_fields = frozenset(names[: len(args)]) | kwargs.keys()
        build(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


def named_fields(cfg: Any) -> frozenset[str]:
    """The fields that the maker of `cfg` named; asked for once, while it is made."""
    return cfg.__dict__.pop("_named_fields", _fields_off_default(cfg))


def _fields_off_default(cfg: Any) -> frozenset[str]:
    """What a subclass with an initialiser of its own can be seen to have named."""
    return frozenset(f.name for f in fields(cfg) if getattr(cfg, f.name) != f.default)
