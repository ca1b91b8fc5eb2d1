"""Which SAEs have been released, where they lie, and what is known about them."""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_lens.loading.registry_file import RegistryEntry, RegistryRelease, read_registry_file

REGISTRY_FILE = Path(__file__).resolve().parent.parent / "pretrained_saes.yaml"


@dataclass
class PretrainedSAELookup:
    """What is known about one release. The four dicts have a value for every id."""

    release: str
    repo_id: str
    model: str
    conversion_func: str | None
    saes_map: dict[str, str]  # id -> path in the repository
    expected_var_explained: dict[str, float]  # 1.0 where unknown
    expected_l0: dict[str, float]  # 0.0 where unknown
    neuronpedia_id: dict[str, str | None]
    config_overrides: dict[str, Any] | None


@lru_cache(maxsize=4)
def _registry(path: Path) -> dict[str, RegistryRelease]:
    return read_registry_file(path)


def registry() -> dict[str, RegistryRelease]:
    """The expanded registry file. Read on first use and shared: not to be changed."""
    return _registry(REGISTRY_FILE)


def get_pretrained_saes_directory() -> dict[str, PretrainedSAELookup]:
    """Every known release by name. The result is the caller's own copy.

    Raises:
        KeyError: (also a `ValueError`) when the registry file has a mistake, for example a release
            without `saes`; the message names the release and the key.
    """
    return {name: _lookup(release) for name, release in registry().items()}


def get_norm_scaling_factor(release: str, sae_id: str) -> float | None:
    """The factor that brings this SAE's inputs to the norm it was trained at, if one is known."""
    found = _entry(release, sae_id)
    return found.norm_scaling_factor if found else None


def get_repo_id_and_folder_name(release: str, sae_id: str) -> tuple[str, str]:
    """(repository, path in it). An unknown release is taken for a repository id itself.

    Raises:
        ValueError: the release is known but not the id.
    """
    found = registry().get(release)
    if found is None:
        return release, sae_id
    if sae_id not in found.saes:
        raise ValueError(unknown_id_message(release, sae_id))
    return found.repo_id, found.saes[sae_id].path


def get_config_overrides(release: str, sae_id: str) -> dict[str, Any]:
    """What the registry lays over the file's own configuration, always with `neuronpedia_id`."""
    found = registry().get(release)
    overrides = copy.deepcopy(dict(found.config_overrides or {})) if found else {}
    entry = _entry(release, sae_id)
    overrides["neuronpedia_id"] = entry.neuronpedia if entry else None
    return overrides


def find_repository_releases(repo_id: str) -> list[str]:
    """Names of the releases whose files lie in this repository."""
    return [name for name, release in registry().items() if release.repo_id == repo_id]


def search_releases(pattern: str | None = None) -> list[PretrainedSAELookup]:
    """Releases whose name, model, repository or one of whose ids matches.

    `pattern` is a part of the text, or a shell pattern when it holds `*` or `?`; case is ignored.
    """
    return [_lookup(release) for release in registry().values() if _matches(release, pattern)]


def near_releases(name: str) -> list[str]:
    """Up to three releases whose names resemble `name`, the nearest first."""
    return difflib.get_close_matches(name, registry(), n=3, cutoff=0.5)


def unknown_release_message(release: str) -> str:
    """The error text for a release that is neither registered nor a repository id."""
    near = near_releases(release)
    hint = f" Did you mean {_listed(near)}?" if near else ""
    return (
        f"Release {release!r} not found in pretrained SAEs directory.{hint} "
        "`sae-lens list PATTERN` searches the known releases; a Hugging Face repository is given "
        "as 'owner/name' with the folder of the SAE as sae_id."
    )


def unknown_id_message(release: str, sae_id: str) -> str:
    """The error text for an id that a registered release lacks."""
    found = registry()[release]
    ids = list(found.saes)
    near = difflib.get_close_matches(str(sae_id), ids, n=3, cutoff=0.6)
    hint = f" Did you mean {_listed(near)}?" if near else ""
    shown = ", ".join(repr(known) for known in ids[:5]) + (", ..." if len(ids) > 5 else "")
    message = (
        f"ID {sae_id!r} not found in release {release!r}.{hint} Valid IDs are {shown} ({len(ids)})."
    )
    sibling = registry().get(f"{release}-canonical")
    if sibling is not None and "gemma-scope" in release:
        canonical = list(sibling.saes)
        shown = ", ".join(repr(known) for known in canonical[:5])
        more = ", ..." if len(canonical) > 5 else ""
        message += (
            f" If you don't want to specify an L0 value, consider using the release "
            f"{sibling.name!r} whose IDs are {shown}{more}"
        )
    return message


def _entry(release: str, sae_id: str) -> RegistryEntry | None:
    found = registry().get(release)
    return found.saes.get(sae_id) if found else None


def _lookup(release: RegistryRelease) -> PretrainedSAELookup:
    saes = release.saes.values()
    return PretrainedSAELookup(
        release=release.name,
        repo_id=release.repo_id,
        model=release.model,
        conversion_func=release.conversion_func,
        saes_map={sae.id: sae.path for sae in saes},
        expected_var_explained={
            sae.id: 1.0 if sae.variance_explained is None else sae.variance_explained
            for sae in saes
        },
        expected_l0={sae.id: 0.0 if sae.l0 is None else sae.l0 for sae in saes},
        neuronpedia_id={sae.id: sae.neuronpedia for sae in saes},
        config_overrides=copy.deepcopy(release.config_overrides),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _matches(release: RegistryRelease, pattern: str | None) -> bool:
    if not pattern:
        return True
    texts = [release.name, release.model, release.repo_id]
    wanted = pattern.lower()
    if any(character in wanted for character in "*?["):
        return _any_match([*texts, *release.saes], wanted)
    return any(wanted in text.lower() for text in (*texts, *release.saes))


def _any_match(texts: Iterable[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(text.lower(), pattern) for text in texts)


def _listed(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)
