"""Imports go one way: each module may use what stands below it, and nobody the package's root.

The picture is in `docs/architecture.md`. Imports inside functions and for the type checker count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import sae_lens

PACKAGE = Path(sae_lens.__file__).parent

# From the bottom up. Within one row, parts with different names do not import each other.
LAYERS: list[tuple[str, ...]] = [
    ("leaves",),
    ("kernels", "loading"),
    ("saes", "activations"),
    ("training", "analysis"),
    ("config",),
    ("evals", "lm_saes", "synthetic"),
    ("held_out_evaluation",),
    ("runners",),
    ("cli",),
]
RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}

LEAVES = {
    "_version", "registry", "constants", "hook_names", "errors", "atomic_files", "whitening",
    "breaking_off", "late_numbers", "number_kinds", "transformer_lens_versions",
}  # fmt: skip
RUNNERS = {
    "multi_sae_training_runner",
    "sae_training_runner",
    "cache_activations_runner",
    "pretokenize_runner",
    "demo_runner",
    "preflight",
    "toy_model_runner",
}
# Old paths: a docstring and names from elsewhere. They may point anywhere, nobody may use them.
RE_EXPORTS = {
    "sae",
    "load_model",
    "tokenization_and_batching",
    "toolkit.*",
    "tutorial.*",
    "saes.sae",
    "saes.*_sae",
    "training.activations_store",
    "training.training_sae",
    "training.sae_trainer",
    "training.upload_saes_to_huggingface",
    "training.config",
    "training.evals",
    "training.load_model",
    "training.cache_activations_runner",
    "training.pretokenize_runner",
    "training.batching",
    "training.activation_functions",
}
# The entry points from before version 3: layers over the runners, kept at their old places.
EARLY = {
    "training.sae_group",
    "training.lm_runner",
    "training.session_loader",
    "training.sparse_autoencoder",
}
ROOT = {"", "__main__"}


def _modules() -> dict[str, Path]:
    """Every module of the package by its name below the root."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = _modules()


def matches(name: str, patterns: set[str]) -> bool:
    # a pattern such as `toolkit.*` means the package `toolkit` too
    return any(fnmatchcase(name, pattern) or f"{name}.*" == pattern for pattern in patterns)


def part_of(name: str) -> str:
    """The part of the picture a module belongs to."""
    top = name.split(".")[0]
    if top in LEAVES:
        return "leaves"
    if top in RUNNERS:
        return "runners"
    return top


def imports_of(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """(line, module below the root) for every import of the package's own modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sae_lens":
                    yield node.lineno, alias.name.partition(".")[2]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = base[: len(base) - (node.level - 1)]
                source = ".".join(["sae_lens", *base, *([source] if source else [])])
            if source.split(".")[0] != "sae_lens":
                continue
            below = source.partition(".")[2]
            for alias in node.names:
                # `from sae_lens.saes import files` imports a module, not a name in one
                inner = f"{below}.{alias.name}".lstrip(".")
                yield node.lineno, inner if inner in MODULES else below


def violations(name: str, path: Path) -> Iterator[str]:
    part = part_of(name)
    for line, target in imports_of(path, name):
        where = f"{name}, line {line}"
        if target == "":
            yield f"{where}: imports from the package's root; import from the name's own module"
        elif matches(target, RE_EXPORTS | EARLY):
            yield f"{where}: imports {target}, an old path; import from the name's own module"
        else:
            other = part_of(target)
            if other != part and RANK[other] >= RANK[part]:
                yield f"{where}: {part} may not import {other} ({target})"


@pytest.mark.parametrize(
    "name", [n for n in MODULES if not matches(n, RE_EXPORTS | EARLY) and n not in ROOT]
)
def test_imports_go_one_way(name: str) -> None:
    assert part_of(name) in RANK, f"give {name} a place in the picture (LEAVES, RUNNERS or LAYERS)"
    found = list(violations(name, MODULES[name]))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", [n for n in MODULES if matches(n, RE_EXPORTS)])
def test_re_exports_compute_nothing(name: str) -> None:
    for statement in ast.parse(MODULES[name].read_text()).body:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        listing = isinstance(statement, ast.Assign) and isinstance(
            statement.value, (ast.List, ast.Name, ast.Attribute)
        )
        imports = isinstance(statement, (ast.Import, ast.ImportFrom))
        assert docstring or listing or imports or _is_main_guard(statement), ast.unparse(statement)


def _is_main_guard(statement: ast.stmt) -> bool:
    """What keeps `python -m` of an old path working."""
    return isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)


@pytest.mark.parametrize(
    ("name", "line", "complaint"),
    [
        ("saes.base", "from sae_lens.training import trainer", "saes may not import training"),
        (
            "saes.base",
            "def f():\n    import sae_lens.activations.store",
            "may not import activations",
        ),
        ("loading.load", "from sae_lens.saes.base import SAE", "loading may not import saes"),
        ("training.trainer", "from sae_lens import SAE", "the package's root"),
        ("evals", "from sae_lens.sae import SAE", "an old path"),
        ("saes.topk", "from ..config import DTYPE_MAP", "saes may not import config"),
    ],
)
def test_the_rule_sees_a_violation(tmp_path: Path, name: str, line: str, complaint: str) -> None:
    source = tmp_path / "module.py"
    source.write_text(line)
    found = list(violations(name, source))
    assert len(found) == 1
    assert complaint in found[0]


def test_the_rule_lets_the_right_direction_pass(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("from sae_lens.saes import topk\nfrom sae_lens.constants import DTYPE_MAP\n")
    assert not list(violations("training.trainer", source))
