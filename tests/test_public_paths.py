"""Every path that callers import from leads to an object, and all its paths to the same one."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import warnings
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

import sae_lens

_LIST = Path(__file__).with_name("public_paths.txt")
ROUTES = [
    line.split() for line in _LIST.read_text().splitlines() if line and not line.startswith("#")
]


def resolve(path: str) -> Any:
    """The object at a dotted path, importing the module part of it."""
    module_name, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module_name), name)


@pytest.mark.parametrize("routes", ROUTES, ids=lambda routes: routes[0])
def test_all_routes_lead_to_the_same_object(routes: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = [resolve(route) for route in routes]
    assert all(item is found[0] for item in found), dict(zip(routes, found, strict=True))


@pytest.mark.parametrize("name", sae_lens.__all__)
def test_every_listed_name_resolves(name: str) -> None:
    assert getattr(sae_lens, name) is not None
    assert name in dir(sae_lens)


def test_early_names_resolve_without_being_listed() -> None:
    for name in sae_lens._EARLY_NAMES:
        assert name not in sae_lens.__all__
        assert getattr(sae_lens, name) is not None


def test_no_default_can_be_changed_by_a_call() -> None:
    """Lists, dicts, sets and config objects as defaults would be shared between calls."""
    checked, shared = 0, []
    for path in [routes[0] for routes in ROUTES]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found = resolve(path)
        functions = [found, *vars(found).values()] if inspect.isclass(found) else [found]
        for function in map(inspect.unwrap, filter(inspect.isroutine, functions)):
            function = getattr(function, "__func__", function)
            if not str(getattr(function, "__module__", "")).startswith("sae_lens"):
                continue
            checked += 1
            for parameter in inspect.signature(function).parameters.values():
                default = parameter.default
                is_config = is_dataclass(default) and not isinstance(default, type)
                if is_config or isinstance(default, (list, dict, set)):
                    shared.append(f"{path}({parameter.name}={default!r})")
    assert checked > 300
    assert not shared


def test_names_for_the_type_checker_are_the_names_at_run_time() -> None:
    tree = ast.parse(Path(sae_lens.__file__).read_text())
    block = next(
        n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    )
    declared = {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert sorted([*declared, "__version__", "logger"]) == sorted(sae_lens.__all__)
    for name, module in declared.items():
        assert module == sae_lens._HOMES.get(name, "sae_lens.saes"), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SAEE'"):
        _ = sae_lens.SAEE  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "lines",
    [
        "import sae_lens\nfrom sae_lens import pretokenize_runner as f",
        "import sae_lens.pretokenize_runner\nfrom sae_lens import pretokenize_runner as f",
        "from sae_lens.pretokenize_runner import PretokenizeRunner\n"
        "import sae_lens; f = sae_lens.pretokenize_runner",
        "import sae_lens; f = sae_lens.pretokenize_runner\nimport sae_lens.pretokenize_runner\n"
        "assert sae_lens.pretokenize_runner is f",
    ],
    ids=["root", "submodule first", "name from the submodule first", "submodule afterwards"],
)
def test_pretokenize_runner_is_the_function_in_every_import_order(lines: str) -> None:
    check = (
        "\nimport sys\nassert callable(f), f"
        "\nassert f is sys.modules['sae_lens.pretokenize_runner'].pretokenize_runner"
    )
    done = subprocess.run([sys.executable, "-c", lines + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
