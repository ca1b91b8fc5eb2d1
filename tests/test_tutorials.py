"""The notebooks of `tutorials/` run as they stand, and come to what they say."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"

# What must hold after the last cell of each.
CLAIMS = {
    "training_an_sae": """
        assert figures["L0"] == 16
        assert figures["explained variance"] > 0.75 and figures["CE-loss score"] > 0.9
        assert log[held_out].dropna().is_monotonic_increasing
    """,
    "analysing_an_sae": """
        assert acts.shape == (len(words), 1024)
        assert Path(page).stat().st_size > 10_000 and len(rows) == 10
        assert effect["ablated"].max() > 0.01
        assert written() != steered
    """,
    "known_features": """
        assert found.mcc > 0.7 and abs(found.l0 - 4) < 1
        assert len(results) == 8
    """,
}


def test_every_notebook_is_here() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.ipynb")} == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_the_notebook_runs(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
    claims = "\n".join(line.strip() for line in CLAIMS[name].strip().splitlines())
    notebook.cells.append(nbformat.v4.new_code_cell(f"from pathlib import Path\n{claims}"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert pictures >= 2
