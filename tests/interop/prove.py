"""Prove that SAE folders travel between this library and the original releases, in both directions.

    python tests/interop/prove.py [--venvs DIRECTORY] [--write-docs]

For each release it makes a virtual environment (once), has the original write SAEs that this
library reads, and has this library write SAEs that the original reads; every time the numbers are
compared. Needs a package index. The exit code is 0 when everything that should be equal is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from worker import FLAT, cases, trained_cases

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DOCS = ROOT / "docs" / "interop.md"

# release -> what pip needs to be told besides
RELEASES: dict[str, list[str]] = {
    "5.2.1": ["numpy<2", "pyarrow<20", "wandb<0.18"],
    "5.11.0": ["pyarrow<20"],
    "6.54.12": [],
}
TORCH = "torch==2.13.0"
MARK = "<!-- the table is written by tests/interop/prove.py -->"


def environment(release: str, venvs: Path) -> Path:
    """The Python of a virtual environment with that release of the original."""
    folder = venvs / f"sae-lens-{release}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = [TORCH, f"sae-lens=={release}", *RELEASES[release]]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "ready").touch()
    return python


def work(python: str | Path, mode: str, folder: Path, *names: str) -> Any:
    """Run the worker with some Python; our own gets this checkout on its path."""
    path = str(ROOT) if str(python) == sys.executable else ""
    settings = {
        **os.environ,
        "PYTHONPATH": path,
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(python), "-W", "ignore", str(HERE / "worker.py"), mode, str(folder), *names]
    # Elsewhere than in this checkout, whose package would hide the installed one.
    done = subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def readable_by(release: str) -> list[str]:
    """The cases that a release can know: 5.x has the four flat architectures."""
    if release.startswith("6"):
        return list(cases())
    known = (name for name, options in cases().items() if options["architecture"] in FLAT)
    return [name for name in known if name not in trained_cases()]


def written_by(release: str) -> list[str]:
    """The cases that a release can write: rescaling came with 6.x."""
    own = trained_cases()
    return [
        name
        for name in readable_by(release)
        if name not in own and (release[0] == "6" or "rescaled" not in name)
    ]


def prove(venvs: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Results by release and direction: {case: "equal" or what went wrong}."""
    results: dict[str, dict[str, dict[str, str]]] = {}
    for release in RELEASES:
        python = environment(release, venvs)
        with tempfile.TemporaryDirectory() as theirs, tempfile.TemporaryDirectory() as ours:
            work(python, "write", Path(theirs), *written_by(release))
            work(sys.executable, "write", Path(ours), *readable_by(release))
            results[release] = {
                "their folders, read here": work(sys.executable, "read", Path(theirs)),
                "our folders, read there": work(python, "read", Path(ours)),
            }
    return results


def table(results: dict[str, dict[str, dict[str, str]]]) -> str:
    """The results as a Markdown table: a row per case, two columns per release."""
    columns = [(release, way) for release, ways in results.items() for way in ways]
    lines = [
        "| SAE | " + " | ".join(f"{release}: {way}" for release, way in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for case in cases():
        cells = [results[release][way].get(case, "") for release, way in columns]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run, print the table, and with `--write-docs` put it into the documentation."""
    parser = argparse.ArgumentParser(description="Prove that SAE folders travel both ways.")
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "sae-interop")
    parser.add_argument("--write-docs", action="store_true")
    arguments = parser.parse_args()
    results = prove(arguments.venvs)
    text = table(results)
    print(text)
    if arguments.write_docs:
        head = DOCS.read_text(encoding="utf-8").split(MARK)[0]
        DOCS.write_text(f"{head}{MARK}\n\n{text}\n", encoding="utf-8")
    wrong = [
        (release, way, case, result)
        for release, ways in results.items()
        for way, found in ways.items()
        for case, result in found.items()
        if result != "equal"
    ]
    for entry in wrong:
        print("NOT EQUAL:", *entry)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
