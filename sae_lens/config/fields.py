"""Dataclass fields that hold dictionaries, which a command line gives as JSON."""

from __future__ import annotations

import json
from dataclasses import field
from functools import partial
from typing import Any


def json_dict(s: str) -> Any:
    """The dictionary in the JSON text `s`.

    Raises:
        ValueError: when the text is no JSON, or JSON that is no dictionary.
    """
    try:
        value = json.loads(s)
    except json.JSONDecodeError as error:
        raise ValueError(f"{s!r} is not JSON ({error}); write it like '{{\"k\": 32}}'.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{s!r} is not a JSON dictionary; write it like '{{\"k\": 32}}'.")
    return value


def dict_field(default: dict[str, Any] | None, **kwargs: Any) -> Any:
    """A dataclass field for a dictionary: a fresh copy of `default` in every instance.

    `kwargs` go to `dataclasses.field`.
    """
    if default is None:
        return field(default=None, **kwargs)
    return field(default_factory=partial(dict, default), **kwargs)
