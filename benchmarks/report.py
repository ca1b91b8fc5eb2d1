"""The docs' table and a plot, from what a benchmark run wrote.

    python -m benchmarks.report [bench_output/benchmarks.json ...] [--docs docs/benchmarks.md]

Replaces what stands between two marks in the page; no figure in it is written by hand. Of several
runs, each is reported with its own circumstances.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from html import escape
from pathlib import Path
from typing import Any

from sae_lens.atomic_files import atomic_write_bytes

log = logging.getLogger("benchmarks")

BEGIN = "<!-- measured: begin (python -m benchmarks.report) -->"
END = "<!-- measured: end -->"
COLOURS = ("#1f6f8b", "#7fb7c9", "#c0563b", "#e0a184", "#8a8f3c", "#6b5b95")


def markdown(results: dict[str, Any]) -> str:
    """Tables of all parts that were measured."""
    parts = [about_lines(results["about"])]
    if "step" in results:
        parts.append(step_table(results["step"]))
    if "activations" in results:
        parts.append(token_table("Activations gathered", results["activations"], "bare pass = 1"))
    if "runner" in results:
        parts.append(token_table("Whole runs (topk)", results["runner"], "ours = 1"))
    if "startup" in results:
        parts.append(startup_table(results["startup"]))
    return "\n\n".join(parts)


def about_lines(about: dict[str, Any]) -> str:
    """Command, machine and load."""
    clock = {"wall": "wall-clock time", "cpu": "processor time"}[about["clock"]]
    machine = about.get("gpu") or f"{about['cores']} cores of {about['cpu']}"
    after = "not noted after it, since the run was ended before all its cases were done"
    if "load_after" in about:
        after = f"{about['load_after']} after the run"
    if about.get("loads"):
        after += f", between {min(about['loads'])} and {max(about['loads'])} on the way"
    others = ""
    if about.get("rounds_of_others", about["rounds"]) != about["rounds"]:
        others = f" ({about['rounds_of_others']} of other libraries' steps)"
    return (
        f"Measured with `{about['command'].strip()}` on {about['started']}, on {machine} "
        f"({about['threads']} threads per contender, {about['torch']}, Python {about['python']}); "
        f"load of the machine {about['load_before']} before and {after}. Times are {clock}, "
        f"medians of {about['rounds']} rounds{others} in which the contenders took turns."
    )


def step_table(cases: list[dict[str, Any]]) -> str:
    """One row per case, one column per contender: floors, and peak memory."""
    names = contenders_of(cases)
    lines = [
        "### Training step, in encoder products",
        "",
        "A step's time over that of `x @ W_enc` alone; in brackets the process's peak memory in GB"
        " (libraries included). Empty: the contender has no such architecture, or failed.",
        "",
        "| architecture | d_in → d_sae | active | product | " + " | ".join(names) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for case in cases:
        by_name = {line["contender"]: line for line in case["results"]}
        cells = [step_cell(by_name.get(name)) for name in names]
        floor = f"{1000 * case['floor_s']:.3g} ms" if case["floor_s"] else ""
        precision = "" if case["precision"] == "float32" else f", {case['precision']}"
        lines.append(
            f"| {case['architecture']}{precision} | {case['d_in']} → {case['d_sae']} | "
            f"{case['l0']} | {floor} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def step_cell(line: dict[str, Any] | None) -> str:
    """Floors and memory."""
    if line is None or line.get("floors") is None:
        return ""
    floors = f"{line['floors']:.3g}"
    if line["contender"] == "ours":
        floors = f"**{floors}**"
    memory = line.get("peak_memory_gb")
    return f"{floors} ({memory:.1f})" if memory else floors


def token_table(title: str, part: dict[str, Any], unit: str) -> str:
    """Tokens a second of each contender."""
    lines = [
        f"### {title}",
        "",
        f"| | tokens/s | time ({unit}) | peak memory, GB |",
        "|---|---|---|---|",
    ]
    for line in part["results"]:
        memory = line.get("peak_memory_gb", "")
        lines.append(
            f"| {line['contender']} | {line['tokens_per_s'] or ''} | "
            f"{line['times_the_first'] or ''} | {memory} |"
        )
    return "\n".join(lines)


def startup_table(part: dict[str, Any]) -> str:
    """Seconds to import."""
    lines = [
        "### Start-up",
        "",
        "Seconds of a fresh process: torch alone, `import sae_lens`, and importing the names for "
        "loading, training and running an SAE.",
        "",
        "| | torch alone | import | names in use |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {line['contender']} | {line['torch']} | {line['import']} | {line['use']} |"
        for line in part["results"]
    ]
    return "\n".join(lines)


def contenders_of(cases: list[dict[str, Any]]) -> list[str]:
    """Names in order of appearance."""
    return list(dict.fromkeys(line["contender"] for case in cases for line in case["results"]))


def plot(results: dict[str, Any]) -> str:
    """Bars of the training steps as an SVG; shorter is faster. One density: the first case's."""
    cases = results.get("step", [])
    cases = [case for case in cases if case["l0"] == cases[0]["l0"]]
    names = contenders_of(cases)
    bars = [
        (case, line) for case in cases for line in case["results"] if line.get("floors") is not None
    ]
    widest = max((line["floors"] for _, line in bars), default=1.0)
    left, height, room = 330, 14, 520
    parts, y = [], 20
    for i, name in enumerate(names):
        parts.append(f'<rect x="{10 + 150 * i}" y="4" width="10" height="10" fill="{COLOURS[i]}"/>')
        parts.append(f'<text x="{24 + 150 * i}" y="13">{escape(name)}</text>')
    y += 14
    last = None
    for case, line in bars:
        if case is not last:
            y += 8
            title = f"{case['architecture']} {case['d_in']}→{case['d_sae']}, {case['l0']} active"
            parts.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{title}</text>')
            last = case
        length = max(1.0, room * line["floors"] / widest)
        colour = COLOURS[names.index(line["contender"])]
        parts.append(
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{height - 2}" fill="{colour}"/>'
            f'<text x="{left + length + 4:.1f}" y="{y + 11}">{line["floors"]:.3g}</text>'
        )
        y += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + room + 60}" height="{y + 34}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + f'<text x="{left}" y="{y + 20}">time of a training step, in encoder products</text></svg>'
    )


def write_report(sources: list[Path], svg: Path, page: Path | None) -> None:
    """Write the plot, and the tables into a page that has the two marks.

    Raises:
        ValueError: when the page lacks the marks.
    """
    runs = [json.loads(source.read_text(encoding="utf-8")) for source in sources]
    with_steps = next((run for run in runs if run.get("step")), runs[0])
    atomic_write_bytes(svg, plot(with_steps).encode())
    log.info("plot: %s", svg)
    if page is None:
        return
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}.")
    tables = "\n\n".join(markdown(run) for run in runs)
    measured = f"{BEGIN}\n\n{tables}\n\n{END}"
    atomic_write_bytes(page, pattern.sub(lambda _: measured, text).encode())
    log.info("tables: %s", page)


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "sources", nargs="*", type=Path, default=[Path("bench_output/benchmarks.json")]
    )
    parser.add_argument("--docs", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--svg", type=Path, default=Path("docs/benchmarks.svg"))
    options = parser.parse_args()
    write_report(options.sources, options.svg, options.docs)


if __name__ == "__main__":
    main()
