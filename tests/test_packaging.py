"""The distribution: its name and version, and what its wheel carries."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sae_lens

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_the_installed_version_is_the_librarys_own() -> None:
    # Both spellings: tools ask for "sae_lens", the project is called "sae-lens".
    assert importlib.metadata.version("sae_lens") == sae_lens.__version__
    assert importlib.metadata.version("sae-lens") == sae_lens.__version__


def test_a_change_log_section_exists_for_this_version(repository: Path) -> None:
    assert f"## {sae_lens.__version__}" in (repository / "CHANGELOG.md").read_text()


def test_every_dependency_of_the_library_is_pinned_for_development(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower()
        for line in (repository / "requirements-dev.lock").read_text().splitlines()
        if "==" in line
    }
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["viz"], *extras["docs"], *extras["dev"]]
    for requirement in wanted:
        name = requirement.split(";")[0].split("[")[0].split(">")[0].strip().lower()
        assert name in pinned, f"{name} is not in requirements-dev.lock: run `make lock`"
    assert not [name for name in pinned if name.startswith("nvidia")]


@pytest.fixture(scope="module")
def wheel_files(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Names and sizes in a wheel built from this checkout."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=repository,
        check=True,
        capture_output=True,
    )
    (wheel,) = target.glob("sae_lens-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.compress_size for info in archive.infolist()}


def test_the_wheel_carries_every_file_of_the_package(
    repository: Path, wheel_files: dict[str, int]
) -> None:
    package = repository / "sae_lens"
    wanted = {
        str(path.relative_to(repository))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"sae_lens/py.typed", "sae_lens/pretrained_saes.yaml"} <= wanted
    assert any(name.startswith("sae_lens/data/") for name in wanted)
    assert wanted <= set(wheel_files)


def test_the_wheel_holds_nothing_but_the_package(wheel_files: dict[str, int]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel_files} == {"sae_lens"}


def test_the_embedded_model_and_text_stay_small(wheel_files: dict[str, int]) -> None:
    size = sum(n for name, n in wheel_files.items() if name.startswith("sae_lens/data/"))
    assert size <= 8_000_000
