"""What README and docs show is true: code compiles, names exist, commands parse, links lead on."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lens.cli.main import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[pytest.param]:
    """Every code block in one of the languages, named by page and number."""
    found = []
    for page in PAGES:
        for number, (language, body) in enumerate(BLOCK.findall(page.read_text())):
            if language in languages:
                found.append(pytest.param(body, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_compiles_and_its_names_exist(code: str) -> None:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sae_lens"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def commands() -> list[pytest.param]:
    found = []
    for block in blocks("", "bash", "shell"):
        for line in block.values[0].replace("\\\n", " ").splitlines():
            if line.startswith("sae-lens "):
                found.append(pytest.param(line.split("#")[0], id=line))
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    _, command, *arguments = shlex.split(line)
    assert command in COMMANDS
    build_parser(command).parse_args([command, *arguments])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        generated = page.parent.name == "api" or target.startswith("api/")
        assert generated or (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for line in re.findall(r"`make ([a-z -]+)`|^make ([a-z -]+?) *(?:#|$)", page.read_text()):
            named = {word for part in line for word in part.split()}
            assert named <= targets, f"{page.name}: {named - targets}"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--normalize_activations" in (tmp_path / "cli" / "index.html").read_text()
    assert "TopKTrainingSAE" in (tmp_path / "api" / "saes" / "index.html").read_text()
