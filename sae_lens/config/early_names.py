"""Keywords of releases before 3.0, under which a runner config may still be made."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from typing import Any

EARLY_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "hook_point_eval": "hook_eval",
}


def with_current_names(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the early names replaced; a current name beside its early one wins.

    The `{layer}` of an early hook point is filled in from the layer. Warns about each old name.
    """
    current = {name: value for name, value in values.items() if name not in EARLY_NAMES}
    for old, new in EARLY_NAMES.items():
        if old in values:
            warnings.warn(
                f"{old} is an early name of {new}; write {new}={values[old]!r}.",
                DeprecationWarning,
                stacklevel=4,
            )
            current.setdefault(new, values[old])
    for name in ("hook_name", "hook_eval"):
        if isinstance(current.get(name), str) and "{layer}" in current[name]:
            current[name] = current[name].replace("{layer}", str(current.get("hook_layer", 0)))
    return current


def unknown_names_message(unknown: Iterable[str], known: Iterable[str], what: str) -> str:
    """A sentence on names that `what` does not have, with the nearest that it has."""
    known = sorted(known)
    parts = []
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        parts.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return f"{what} has no field {', '.join(parts)}. Its fields are: {', '.join(known)}."
