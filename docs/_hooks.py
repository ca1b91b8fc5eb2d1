"""Pages that are made from the code when the site is built: the command line and the API.

`<!-- help: train -->` in a page becomes what `sae-lens train --help` prints. The pages under `api/`
list the modules of one part of the package each, so that a new module cannot be forgotten.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sae_lens.cli.main import COMMANDS, main

PACKAGE = Path(__file__).resolve().parent.parent / "sae_lens"

# page -> (title, folders or modules below the package)
API_PAGES = {
    "saes": ("The mathematics", ["saes"]),
    "activations": ("Where training data comes from", ["activations"]),
    "training": ("From batches to weights", ["training"]),
    "config": ("Configs of whole runs", ["config"]),
    "analysis": ("From SAEs to insight", ["analysis"]),
    "loading": ("Released SAEs as plain data", ["loading"]),
    "runners": (
        "Runners and evals",
        [
            "sae_training_runner.py",
            "cache_activations_runner.py",
            "pretokenize_runner.py",
            "evals.py",
            "registry.py",
        ],
    ),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the API pages."""
    for page, (title, sources) in API_PAGES.items():
        modules = [name for source in sources for name in _modules(PACKAGE / source)]
        body = "\n\n".join(f"::: {name}" for name in modules)
        files.append(File.generated(config, f"api/{page}.md", content=f"# {title}\n\n{body}\n"))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the help texts of the commands in their places."""
    return re.sub(r"<!-- help: ([a-z-]*) -->", lambda found: _help(found[1]), markdown)


def _modules(source: Path) -> list[str]:
    """Modules with something public in them, by dotted name; thin re-exports are left out."""
    files = sorted(source.glob("**/*.py")) if source.is_dir() else [source]
    return [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for file in files
        if file.exists() and re.search(r"^(class|def) [A-Za-z]", file.read_text(), re.MULTILINE)
    ]


def _help(command: str) -> str:
    if command and command not in COMMANDS:
        raise ValueError(f"no such command: {command}; there are {', '.join(COMMANDS)}")
    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([command, "--help"] if command else ["--help"])
    return f"```text\n{printed.getvalue().rstrip()}\n```"
