"""The benchmark's own machinery: contests between workers, and the report."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench_step import add_options
from benchmarks.contests import Entry, Workers, hold, median, ratio, seconds_per_token
from benchmarks.environments import Contender
from benchmarks.profile_step import PARTS, profile
from benchmarks.report import BEGIN, END, write_report
from sae_lens.kernels import autograd

WORKER = """
import json, sys, time
sys.path.insert(0, {folder!r})
from serving import Server
server = Server()
if sys.argv[1] == "missing":
    raise SystemExit("is not installed")
options = server.next_case()
if options["family"] == "broken":
    raise SystemExit("cannot be imported")
print("a library prints something")
server.final_values = lambda: {{"version": "1"}}
tokens = 0
while True:
    server.wait_for_request(tokens=tokens)
    time.sleep(options["seconds"])
    tokens = 10
"""


def entry(name: str, seconds: float) -> Entry:
    options = {"family": name, "seconds": seconds}
    return Entry(Contender(name, name), Path(sys.executable), options, rounds=3, warm_up=1)


def test_contenders_take_turns_and_a_broken_one_drops_out(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(folder=str(Path(__file__).parents[1] / "benchmarks")))
    entries = [entry(name, 0.0) for name in ("slow", "broken", "missing", "quick")]
    entries[0].options["seconds"], entries[0].rounds = 0.05, 2
    with Workers(threads=1, log_folder=tmp_path / "logs") as workers:
        slow, broken, missing, quick = hold(str(script), entries, workers)
        again = hold(str(script), [entry("broken", 0.0), entry("quick", 0.0)], workers)
        processes = [worker.process for worker in workers.workers.values()]
    assert all(process.returncode is not None for process in processes)
    assert [len(one.units) for one in again] == [0, 3]
    assert (len(slow.units), len(quick.units)) == (2, 3)
    assert missing.error == "is not installed"
    assert median(slow, "wall") >= 0.05  # type: ignore[operator]
    assert median(slow, "cpu") < 0.05  # type: ignore[operator]
    assert ratio(median(slow, "wall"), median(quick, "wall")) > 1  # type: ignore[operator]
    assert seconds_per_token(slow, "wall") >= 0.005  # type: ignore[operator]
    assert slow.closing["version"] == "1"
    assert slow.closing["peak_memory_gb"] > 0
    assert broken.error == "cannot be imported"
    assert median(broken, "wall") is None
    assert ratio(median(broken, "wall"), 1.0) is None


def test_a_profile_finds_every_part_of_a_step() -> None:
    size = ["--d-in", "8", "--d-sae", "64", "--batch", "16", "--l0", "4", "--device", "cpu"]
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args([*size, "--steps", "1", "--warmup", "2"])
    before = autograd.entry_products
    for architecture in ("gated", "topk"):
        floors = profile(options, architecture)
        assert all(floors[part] > 0 for part in PARTS)
        assert sum(floors[part] for part in PARTS) == pytest.approx(floors["a step"])
    assert floors["active features a token"] == 4
    assert autograd.entry_products is before


def results() -> dict[str, object]:
    about = {
        "command": "python -m benchmarks --quick", "started": "now", "cpu": "a processor",
        "cores": 2, "threads": 1, "clock": "cpu", "rounds": 3, "load_before": 0.5, "python": "3",
        "torch": "torch",
    }  # fmt: skip
    case = {
        "architecture": "topk", "d_in": 8, "d_sae": 16, "l0": 2, "batch": 4,
        "precision": "float32", "floor_s": 0.001,
        "results": [
            {"contender": "ours", "floors": 1.5, "peak_memory_gb": 0.42},
            {"contender": "other", "floors": None, "error": "no"},
        ],
    }  # fmt: skip
    return {"about": about, "step": [case]}


def test_the_report_replaces_what_is_between_the_marks(tmp_path: Path) -> None:
    source, page, svg = (tmp_path / name for name in ("run.json", "page.md", "plot.svg"))
    source.write_text(json.dumps(results()))
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_report([source], svg, page)
        text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| topk | 8 → 16 | 2 | 1 ms | **1.5** (0.4) |  |") == 1
    assert "processor time" in text
    assert svg.read_text().startswith("<svg")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        write_report([source], svg, page)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "n_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_memory_of_a_large_topk_sae(dtype: str, n_bytes: int) -> None:
    """Weights, gradients and two moments, and little else: an eighth of a million features."""
    d_in, d_sae = 512, 1 << 17
    command = ["-m", "benchmarks.million_features", "--dtype", dtype, "--steps", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--d-sae", str(d_sae)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["is_sparse"]
    own = 1e9 * (result["peak_gb"] - result["peak_before_gb"])
    # the product of one piece and what torch allocates at first use
    assert own < 4 * 2 * d_in * d_sae * n_bytes + 0.4e9
