"""Configs from files and command lines: the fields of a dataclass as flags, YAML or JSON.

Every field is a flag of the same name (`--lr 3e-4`; hyphens for underscores are fine); dictionaries
and lists are written as JSON, None as `none`. What a field means is read from the `Attributes`
section of the class's docstring, so help texts and documentation cannot drift apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from sae_lens.config.early_names import EARLY_NAMES, unknown_names_message
from sae_lens.config.fields import json_dict
from sae_lens.config.nested import as_sae_config
from sae_lens.config.runner import LanguageModelSAERunnerConfig
from sae_lens.errors import stumbling_over
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.config import TrainingSAEConfig

Config = TypeVar("Config")

_MOST_VALUES = 100_000
_TEXTS_ELSEWHERE = "not listed mean what they mean in `LanguageModelSAERunnerConfig`"

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The fields in a YAML (`.yaml`, `.yml`) or JSON file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read as a mapping of names to values.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no config file {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}.") from error
    try:
        if path.suffix == ".json":
            values = json.loads(text)
        else:
            import yaml

            values = yaml.safe_load(text)
    except Exception as error:
        raise ValueError(f"{path} is not valid {path.suffix[1:] or 'YAML'}: {error}.") from error
    if _is_too_large(values):
        raise ValueError(
            f"{path} holds more than {_MOST_VALUES} values, or one that contains itself; that is "
            "no config."
        )
    if values is None:
        values = {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path} must hold a mapping of field names to values.")
    return values


def _is_too_large(value: Any) -> bool:
    """Whether there are too many values, counted as often as aliases of YAML repeat them."""
    n, waiting = 0, [value]
    while waiting:
        n += 1
        if n > _MOST_VALUES:
            return True
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value
    return False


def config_from_values(cls: type[Config], values: Mapping[str, Any], source: str = "") -> Config:
    """A config from plain values, each brought to the type of its field.

    Args:
        cls: a config dataclass.
        values: names and values, as read from a file or a command line.
        source: where they come from, for error messages.

    Raises:
        ValueError: for a name that is no field (with the nearest one that is), or a value that does
            not fit its field.
    """
    where = f" of {source}" if source else ""
    known = {f.name for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    unknown = set(values) - known - set(EARLY_NAMES)
    if unknown:
        raise ValueError(unknown_names_message(sorted(unknown), known, f"{cls.__name__}{where}"))
    hints = typing.get_type_hints(cls)
    converted: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[EARLY_NAMES.get(name, name)]
        try:
            converted[name] = convert(value, hint)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name}{where}: {error}") from error
    with stumbling_over(source or cls.__name__, ValueError):
        return cls(**converted)


def config_from_file(
    cls: type[Config], path: str | Path, overrides: Mapping[str, Any] | None = None
) -> Config:
    """A config from a YAML or JSON file; `overrides` replace what it says.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, names no field, or a value does not fit.
    """
    return config_from_values(cls, {**read_config_file(path), **(overrides or {})}, str(path))


def add_config_arguments(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Give `parser` one flag per field of `cls`. Flags not used are left out of the result."""
    help_texts = field_help(cls)
    hints = typing.get_type_hints(cls)
    group = parser.add_argument_group(f"fields of {cls.__name__}")
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        names = [f"--{field.name}"]
        if "_" in field.name:
            names.append(f"--{field.name.replace('_', '-')}")
        members = _members(hints[field.name])
        shape: dict[str, Any] = {}
        if {list, tuple} & {get_origin(member) for member in members}:
            shape = {"nargs": "*"}
        elif bool in members:
            shape = {"nargs": "?", "const": "true"}
        group.add_argument(
            *names,
            dest=field.name,
            default=argparse.SUPPRESS,
            metavar=type_name(hints[field.name]),
            help=_help_text(help_texts.get(field.name, ""), field),
            **shape,
        )


def config_values(cls: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What a parser with `add_config_arguments` was given for the fields of `cls`, as text.

    A list may be given as several words or as JSON in one.
    """
    names = {f.name for f in dataclasses.fields(cls)}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    hints = typing.get_type_hints(cls)
    for name, words in values.items():
        if not isinstance(words, list):
            continue
        takes_flag = bool in _members(hints[name])
        if not words and takes_flag:
            values[name] = "true"
        elif len(words) == 1 and (takes_flag or words[0].startswith("[")):
            values[name] = words[0]
    return values


def convert(value: Any, hint: Any) -> Any:
    """`value`, which may be text, as the type `hint`.

    Raises:
        ValueError: when it does not fit.
    """
    members = _members(hint)
    says_none = isinstance(value, str) and value.lower() in ("none", "null")
    if (value is None or says_none) and type(None) in members:
        return None
    if value is None and (str in members or dict in [get_origin(member) for member in members]):
        # Some fields are derived when they are None, and say so only by their default.
        return None
    for member in members:
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            return _as_nested_config(value, member)
    if {int, float} <= set(members) and _is_written_as_float(value):
        members = tuple(member for member in members if member is not int)  # 1 and 1.0 differ
    for member in _most_special_first(members):
        try:
            return _convert_to(value, member)
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue
    raise ValueError(f"{value!r} is not {_with_article(type_name(hint))}.")


def _is_written_as_float(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, str) and "." in value)


def type_name(hint: Any) -> str:
    """A short name for a type, as help texts show it."""
    names = []
    for member in _members(hint):
        if get_origin(member) is Literal:
            names += [str(choice) for choice in get_args(member)]
        elif member is not type(None):
            names.append(_PLAIN_NAMES.get(get_origin(member) or member, "JSON"))
    return "|".join(dict.fromkeys(names))


def field_help(cls: type[Any]) -> dict[str, str]:
    """Name -> one line, from the `Attributes` section of a class's docstring.

    A docstring that says so leaves the other fields to that of `LanguageModelSAERunnerConfig`.
    """
    doc = cls.__doc__ or ""
    section = doc.partition("Attributes:\n")[2]
    texts: dict[str, str] = {}
    if _TEXTS_ELSEWHERE in " ".join(doc.split()):
        texts = field_help(LanguageModelSAERunnerConfig)
    name = None
    for line in section.splitlines():
        start = re.match(r"\s{4,8}(\w+): (.+)$", line)
        if start:
            name = start.group(1)
            texts[name] = start.group(2).strip()
        elif name is not None and line.strip():
            texts[name] += " " + line.strip()
    return texts


_PLAIN_NAMES = {
    int: "int", float: "float", str: "text", bool: "true|false", dict: "JSON", list: "JSON",
    tuple: "JSON",
}  # fmt: skip


def _members(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for part in get_args(hint) for member in _members(part))
    return (hint,)


def _most_special_first(members: Sequence[Any]) -> list[Any]:
    """Text last, since everything that was typed is text."""
    return sorted((m for m in members if m is not type(None)), key=lambda member: member is str)


def _convert_to(value: Any, member: Any) -> Any:
    origin = get_origin(member) or member
    if origin is Literal:
        for choice in get_args(member):
            if value == choice or str(value) == str(choice):
                return choice
        raise ValueError(value)
    if origin is bool:
        return _as_bool(value)
    if origin is int:
        return _as_int(value)
    if origin is float:
        if isinstance(value, bool):
            raise ValueError(value)
        return float(value)
    if origin is str:
        if isinstance(value, (dict, list)):
            raise ValueError(value)
        return str(value)
    if isinstance(value, str):
        value = json.loads(value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(value)
        return dict(value)
    if origin in (list, tuple):
        return _as_sequence(value, origin, get_args(member))
    return value


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError(value)


def _as_int(value: Any) -> int:
    """Whole numbers, also when written as 1e6 or 1_000_000."""
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    if value != int(value):
        raise ValueError(value)
    return int(value)


def _as_sequence(value: Any, origin: Any, members: tuple[Any, ...]) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise ValueError(value)
    item = members[0] if members else Any
    return origin(entry if item is Any else convert(entry, item) for entry in value)


def _as_nested_config(value: Any, cls: type[Any]) -> Any:
    """A config inside a config: an instance, or a mapping (or its JSON) that becomes one."""
    if isinstance(value, cls):
        return value
    if isinstance(value, str):
        value = json_dict(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a mapping of field names to values.")
    if not issubclass(cls, TrainingSAEConfig):
        return config_from_values(cls, value)
    if "architecture" not in value:
        raise ValueError("it needs an architecture, such as topk.")
    architecture_cls = get_sae_training_class(str(value["architecture"])).config_class
    known = {f.name for f in dataclasses.fields(architecture_cls)}
    known |= {"metadata", "reshape_activations"}
    unknown = set(value) - known
    if unknown:
        raise ValueError(unknown_names_message(sorted(unknown), known, architecture_cls.__name__))
    hints = {f.name: f.type for f in dataclasses.fields(architecture_cls)}
    numbers = {
        name: float(entry)
        for name, entry in value.items()
        # YAML reads 1e-3 as text.
        if isinstance(entry, str) and "float" in str(hints.get(name))
    }
    return as_sae_config({**value, **numbers})


def _help_text(text: str, field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING and field.default is not None:
        text += f" (default: {field.default})"
    return text.strip().replace("%", "%%")


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}" if "|" not in name else f"one of {name}"
