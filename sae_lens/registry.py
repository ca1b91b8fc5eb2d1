"""From the name of an architecture to its classes.

`register_sae_class` and `register_sae_training_class` are also the way for users to add an
architecture of their own: afterwards `SAE(cfg)`, `SAE.from_dict` and loading from disk find it.
"""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple


class RegisteredSAE(NamedTuple):
    """The classes that belong to one architecture."""

    sae_class: type[Any]
    config_class: type[Any]


SAE_CLASSES: dict[str, RegisteredSAE] = {}
SAE_TRAINING_CLASSES: dict[str, RegisteredSAE] = {}


def register_sae_class(
    architecture: str, sae_class: type[Any], sae_config_class: type[Any]
) -> None:
    """Make `architecture` loadable for inference.

    Raises:
        ValueError: when the name is already taken by another class.
    """
    _register(SAE_CLASSES, architecture, sae_class, sae_config_class)


def register_sae_training_class(
    architecture: str, sae_class: type[Any], sae_config_class: type[Any]
) -> None:
    """Make `architecture` trainable. Raises `ValueError` when the name is already taken."""
    _register(SAE_TRAINING_CLASSES, architecture, sae_class, sae_config_class)


def get_sae_class(architecture: str) -> RegisteredSAE:
    """(class, config class) of an inference architecture; `ValueError` for an unknown name."""
    return _look_up(SAE_CLASSES, architecture, "inference")


def get_sae_training_class(architecture: str) -> RegisteredSAE:
    """(class, config class) of a training architecture; `ValueError` for an unknown name."""
    return _look_up(SAE_TRAINING_CLASSES, architecture, "training")


def _register(
    table: dict[str, RegisteredSAE], name: str, sae_class: type[Any], config_class: type[Any]
) -> None:
    known = table.get(name)
    if known is not None and known.sae_class is not sae_class:
        raise ValueError(
            f"The architecture {name!r} is already registered with {known.sae_class.__name__}; "
            "choose another name for yours."
        )
    table[str(name)] = RegisteredSAE(sae_class, config_class)


def _look_up(table: dict[str, RegisteredSAE], name: str, use: str) -> RegisteredSAE:
    found = table.get(name)
    if found is None:
        near = difflib.get_close_matches(str(name), table, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"Unknown architecture {name!r}: this version knows {sorted(table)} for {use}.{hint} "
            "Architectures of your own are added with register_sae_class."
        )
    return found
