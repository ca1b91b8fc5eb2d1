"""The registry file: compact YAML in, one plain entry per SAE out.

The format is described at the top of `pretrained_saes.yaml`. A mistake in the file is reported with
the release and the key that hold it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

RELEASE_KEYS = {"repo_id", "model", "conversion_func", "config_overrides", "links", "saes"}
NUMBER_KEYS = ("l0", "variance_explained", "norm_scaling_factor")
ENTRY_KEYS = {"id", "path", "neuronpedia", *NUMBER_KEYS}
GROUP_KEYS = {"for", "table"}

_RANGE = re.compile(r"(\d+)-(\d+)")
_INTEGER = re.compile(r"-?\d+")
_FLOAT = re.compile(r"-?\d+\.\d+(e-?\d+)?")


class RegistryFileError(KeyError, ValueError):
    """A mistake in a registry file; the message names the release and the key."""

    def __str__(self) -> str:
        return str(self.args[0])


class RegistryEntry(NamedTuple):
    """One SAE of a release, as the file states it (None: not stated)."""

    id: str
    path: str
    neuronpedia: str | None = None
    l0: int | float | None = None
    variance_explained: int | float | None = None
    norm_scaling_factor: int | float | None = None


class RegistryRelease(NamedTuple):
    """One release with all its SAEs by id."""

    name: str
    repo_id: str
    model: str
    conversion_func: str | None
    config_overrides: dict[str, Any] | None
    links: dict[str, str]
    saes: dict[str, RegistryEntry]


def read_registry_file(path: str | Path) -> dict[str, RegistryRelease]:
    """Read and expand a registry file.

    Raises:
        RegistryFileError: for a file, a release or an entry that is not of the described form.
    """
    with open(path, encoding="utf-8") as file:
        return expand_registry(_load_yaml(file.read(), Path(path)))


def expand_registry(content: Any) -> dict[str, RegistryRelease]:
    """Expand the parsed content of a registry file, release by release.

    Early files nested everything under a top key `SAE_LOOKUP`; that is accepted too.

    Raises:
        RegistryFileError: names the release and the key that are wrong.
    """
    if not isinstance(content, Mapping):
        raise RegistryFileError(
            f"A registry file maps release names to releases; got a {type(content).__name__}."
        )
    if set(content) == {"SAE_LOOKUP"}:
        content = content["SAE_LOOKUP"]
    return {str(name): _expand_release(str(name), body) for name, body in content.items()}


def _load_yaml(text: str, path: Path) -> Any:
    # The C loader reads the packaged file in a tenth of the time; not every wheel has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise RegistryFileError(f"The registry file {path} is not valid YAML: {error}") from error


def _expand_release(name: str, body: Any) -> RegistryRelease:
    if not isinstance(body, Mapping):
        raise RegistryFileError(f"Release {name!r} must be a mapping, not {body!r}.")
    unknown = set(body) - RELEASE_KEYS
    if unknown:
        raise RegistryFileError(
            f"Release {name!r} has the unknown key {sorted(map(str, unknown))[0]!r}; "
            f"known keys are {sorted(RELEASE_KEYS)}."
        )
    for key in ("repo_id", "model", "saes"):
        if not body.get(key):
            raise RegistryFileError(f"Release {name!r} lacks the key {key!r}.")
    if not isinstance(body["saes"], list):
        raise RegistryFileError(f"Release {name!r}: the key 'saes' must hold a list.")
    saes: dict[str, RegistryEntry] = {}
    for position, group in enumerate(body["saes"]):
        for entry in _expand_group(f"Release {name!r}, entry {position + 1} of 'saes'", group):
            if entry.id in saes:
                raise RegistryFileError(f"Release {name!r} lists the id {entry.id!r} twice.")
            saes[entry.id] = entry
    return RegistryRelease(
        name=name,
        repo_id=str(body["repo_id"]),
        model=str(body["model"]),
        conversion_func=body.get("conversion_func"),
        config_overrides=body.get("config_overrides"),
        links=dict(body.get("links") or {}),
        saes=saes,
    )


def _expand_group(where: str, group: Any) -> Iterator[RegistryEntry]:
    """Yield the SAEs that one entry of `saes` stands for."""
    if not isinstance(group, Mapping):
        raise RegistryFileError(f"{where} must be a mapping with 'id' and 'path', not {group!r}.")
    unknown = set(group) - ENTRY_KEYS - GROUP_KEYS
    if unknown:
        raise RegistryFileError(
            f"{where} has the unknown key {sorted(map(str, unknown))[0]!r}; "
            f"known keys are {sorted(ENTRY_KEYS | GROUP_KEYS)}."
        )
    for key in ("id", "path"):
        if group.get(key) is None:
            raise RegistryFileError(f"{where} lacks the key {key!r}.")
    if "for" not in group and "table" not in group:
        yield _plain_entry(where, group)
        return
    id_template, path_template = str(group["id"]), str(group["path"])
    neuronpedia_template = group.get("neuronpedia")
    neuronpedia: str | None = None
    numbers = [
        _number_rule(where, key, group[key]) if key in group else None for key in NUMBER_KEYS
    ]
    for row in _rows(where, group):
        try:
            sae_id = id_template.format_map(row)
            row["id"] = sae_id
            path = path_template.format_map(row)
            if neuronpedia_template is not None:
                neuronpedia = str(neuronpedia_template).format_map(row)
            l0, explained, factor = (rule and rule(row) for rule in numbers)
        except KeyError as error:
            raise RegistryFileError(
                f"{where} uses {{{error.args[0]}}}, which neither 'for' nor 'table' gives."
            ) from error
        yield RegistryEntry(sae_id, path, neuronpedia, l0, explained, factor)


def _plain_entry(where: str, entry: Mapping[str, Any]) -> RegistryEntry:
    for key in NUMBER_KEYS:
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise RegistryFileError(f"{where}: the key {key!r} must hold a number, not {value!r}.")
    neuronpedia = entry.get("neuronpedia")
    if neuronpedia is not None and not isinstance(neuronpedia, str):
        raise RegistryFileError(f"{where}: the key 'neuronpedia' must hold text.")
    return RegistryEntry(
        str(entry["id"]), str(entry["path"]), neuronpedia, *(entry.get(key) for key in NUMBER_KEYS)
    )


def _rows(where: str, group: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the values of the variables, one dict per SAE."""
    if "for" in group and "table" in group:
        raise RegistryFileError(f"{where} has both 'for' and 'table'; use one of them.")
    if "for" in group:
        if not isinstance(group["for"], Mapping):
            raise RegistryFileError(f"{where}: the key 'for' must map variables to values.")
        names = [str(name) for name in group["for"]]
        for values in product(*(_cell(value) for value in group["for"].values())):
            yield dict(zip(names, values, strict=True))
        return
    lines = str(group["table"]).split("\n")
    header = lines[0].split()
    columns = [_column(name) for name in header]
    for line in lines[1:]:
        cells = line.split()
        if not cells:
            continue
        if len(cells) != len(header):
            raise RegistryFileError(
                f"{where}: the row {line.strip()!r} of 'table' has {len(cells)} cells "
                f"for the {len(header)} columns {header}."
            )
        cells_of = list(zip(columns, cells, strict=True))
        plain = [(name, _cell(cell)) for (name, fixed), cell in cells_of if not fixed]
        spread = [(column, cell) for column, cell in cells_of if column[1] and cell != "-"]
        if len(plain) == len(columns):
            yield from _product(plain, {})
        for (name, fixed), cell in spread:
            yield from _product([*plain, (name, _cell(cell))], fixed)


def _product(
    columns: list[tuple[str, list[str]]], fixed: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    names = [name for name, _ in columns]
    for values in product(*(cells for _, cells in columns)):
        yield {**fixed, **dict(zip(names, values, strict=True))}


def _column(header: str) -> tuple[str, dict[str, str]]:
    """`l0@width=16k` is the variable l0 together with the fixed value 16k of width."""
    name, _, condition = header.partition("@")
    variable, _, value = condition.partition("=")
    return name, ({variable: value} if condition else {})


def _cell(cell: Any) -> list[str]:
    """The values that a cell stands for: `0-3,7` is 0, 1, 2, 3 and 7."""
    values: list[str] = []
    for part in str(cell).split(","):
        part = part.strip()
        bounds = _RANGE.fullmatch(part)
        if bounds:
            values += [str(number) for number in range(int(bounds[1]), int(bounds[2]) + 1)]
        else:
            values.append(part)
    return values


class _Fixed(NamedTuple):
    value: int | float

    def __call__(self, row: Mapping[str, str]) -> int | float:
        return self.value


class _FromRow(NamedTuple):
    where: str
    template: str

    def __call__(self, row: Mapping[str, str]) -> int | float:
        text = self.template.format_map(row)
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        raise RegistryFileError(f"{self.where}: {text!r} is not a number.")


class _Rising(NamedTuple):
    """floor(min(to, from + (to - from) * 3 * layer / layers)), in whole numbers."""

    where: str
    layers: int
    pairs: dict[str, tuple[int, int]]

    def __call__(self, row: Mapping[str, str]) -> int:
        pair = self.pairs.get("") or self.pairs.get(row.get("target", "").split("_")[0])
        if pair is None:
            raise RegistryFileError(
                f"{self.where}: 'l0' has no pair for the target {row.get('target')!r}."
            )
        start, end = pair
        return min(end, start + (end - start) * 3 * int(row["layer"]) // self.layers)


def _number_rule(where: str, key: str, value: Any) -> _Fixed | _FromRow | _Rising | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _Fixed(value)
    if isinstance(value, str) and "{" in value:
        return _FromRow(where, value)
    if key == "l0" and isinstance(value, Mapping) and "layers" in value:
        if set(value) == {"layers", "from", "to"}:
            return _Rising(where, value["layers"], {"": (value["from"], value["to"])})
        pairs = {
            name: _RANGE.fullmatch(str(pair)) for name, pair in value.items() if name != "layers"
        }
        if all(pairs.values()):
            return _Rising(
                where,
                value["layers"],
                {name: (int(pair[1]), int(pair[2])) for name, pair in pairs.items() if pair},
            )
    raise RegistryFileError(f"{where}: the key {key!r} cannot hold {value!r}.")
