"""`cfg.metadata`: where an SAE comes from, seen through one more door.

Flat configs (5.x) hold these facts as fields, nested ones (6.x) under `metadata`. Here there is
one value behind both: a `SAEMetadata` that belongs to a config reads and writes the config's
fields, and keeps names that are no fields in the config's `extra_metadata`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from sae_lens.loading.migrations import METADATA_FIELDS


class SAEMetadata:
    """Facts about an SAE's origin, as attributes and as items; any new name may be written.

    A name that was never set reads as None, by attribute and by item, while `in` and `get` tell it
    from one that was. `SAEMetadata(model_name="gpt2", hook_name=...)` makes a free-standing one.
    """

    __slots__ = ("_config", "_values")

    def __init__(self, values: Mapping[str, Any] | None = None, /, **facts: Any):
        object.__setattr__(self, "_config", None)
        object.__setattr__(self, "_values", {**(values or {}), **facts})

    @classmethod
    def of(cls, config: Any) -> SAEMetadata:
        """The view of a config's facts; the config must hold a dict `extra_metadata`."""
        view = cls()
        object.__setattr__(view, "_config", config)
        object.__setattr__(view, "_values", config.extra_metadata)
        return view

    def _is_field(self, name: str) -> bool:
        return self._config is not None and name in METADATA_FIELDS

    def __getitem__(self, name: str) -> Any:
        if self._is_field(name):
            return getattr(self._config, name, None)
        return self._values.get(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if self._is_field(name):
            setattr(self._config, name, value)
        else:
            self._values[name] = value

    def __delitem__(self, name: str) -> None:
        if self._is_field(name):
            setattr(self._config, name, "" if name == "hook_name" else None)
        else:
            self._values.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if self._is_field(name):
            return self[name] not in (None, "")
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """The value of `name` if it is set, else `default`."""
        return self[name] if name in self else default  # noqa: SIM401  (this is get)

    def __iter__(self) -> Iterator[str]:
        fields = METADATA_FIELDS if self._config is not None else ()
        yield from (name for name in fields if name in self)
        values: dict[str, Any] = self._values
        yield from values

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def keys(self) -> list[str]:
        """The names that are set."""
        return list(self)

    def items(self) -> list[tuple[str, Any]]:
        """Pairs of the names that are set and their values."""
        return [(name, self[name]) for name in self]

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of what is set, independent of this object."""
        return deepcopy(dict(self.items()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SAEMetadata):
            return self.to_dict() == other.to_dict()
        return self.to_dict() == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"SAEMetadata({facts})"

    def __copy__(self) -> SAEMetadata:
        return SAEMetadata(dict(self.items()))

    def __deepcopy__(self, memo: dict[int, Any]) -> SAEMetadata:
        return SAEMetadata(self.to_dict())

    def __reduce__(self) -> tuple[type[SAEMetadata], tuple[dict[str, Any]]]:
        return SAEMetadata, (self.to_dict(),)
