"""Importing the package is cheap and does nothing but import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest


def run_python(code: str, **environment: str) -> dict[str, Any]:
    """What a fresh interpreter prints as its last line, read as JSON."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def after_transformer_lens() -> dict[str, Any]:
    """TransformerLens is imported first; what comes after it is our own doing."""
    return run_python(
        """
        import json, os, sys, time
        import transformer_lens
        before = set(sys.modules)
        files, connections = [], []

        def watch(event, args):
            if event == "open" and isinstance(args[0], str):
                path, mode, flags = args
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if writes or os.path.basename(path).startswith(".env"):
                    files.append(path)
            elif event in ("os.mkdir", "os.rename", "os.remove"):
                files.append(f"{event} {args[0]}")
            elif event in ("socket.connect", "socket.getaddrinfo"):
                connections.append(str(args))

        sys.addaudithook(watch)
        start = time.process_time()
        import sae_lens
        root = time.process_time() - start
        import sae_lens.saes
        saes_modules = set(sys.modules) - before
        for name in sae_lens.__all__:
            getattr(sae_lens, name)
        everything = time.process_time() - start
        print(json.dumps({
            "root": root, "everything": everything, "files": files, "connections": connections,
            "saes_modules": sorted(saes_modules), "modules": sorted(set(sys.modules) - before),
        }))
        """
    )


def test_the_root_alone_loads_no_heavy_package() -> None:
    loaded = run_python(
        """
        import json, sys
        import sae_lens
        print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
        """
    )
    assert not {"torch", "transformer_lens", "transformers", "numpy", "wandb"} & set(loaded)


def test_every_public_name_costs_little_beyond_transformer_lens(
    after_transformer_lens: dict[str, Any],
) -> None:
    assert after_transformer_lens["root"] < 0.1
    # All public names together take 0.2 s where nothing else runs; a busy machine needs room.
    assert after_transformer_lens["everything"] < 1.0


@pytest.mark.parametrize("modules", ["saes_modules", "modules"])
def test_no_logging_table_or_plot_package_is_loaded(
    after_transformer_lens: dict[str, Any], modules: str
) -> None:
    ours = {name.split(".")[0] for name in after_transformer_lens[modules]}
    unwanted = {"wandb", "datasets", "pandas", "plotly", "matplotlib", "selenium", "dotenv"}
    assert not ours & unwanted


def test_importing_writes_no_file_and_reaches_nothing(
    after_transformer_lens: dict[str, Any],
) -> None:
    assert after_transformer_lens["files"] == []
    assert after_transformer_lens["connections"] == []
