"""Compare this library with the original and with peers, side by side on this machine.

    python -m benchmarks                  # everything, on all cores
    python -m benchmarks --quick          # a few small cases, in a minute or two
    python -m benchmarks --only step      # training steps alone
    python -m benchmarks.report           # the table in the docs and the plot, from the last run

Contenders run in environments of their own (made on first use under `bench_output/venvs`), all with
the same torch, and take turns, so that their ratios hold on a busy machine too; with `--clock cpu`
and `--threads 1`, ratios are of processor time. Results go to `bench_output/benchmarks.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.contests import (
    Entry,
    Workers,
    environment_of,
    hold,
    median,
    ratio,
    seconds_per_token,
)
from benchmarks.environments import (
    CONTENDERS,
    DICTIONARY_LEARNING,
    FLOOR,
    OURS,
    OURS_5,
    SAE_LENS_5,
    SAE_LENS_6,
    SPARSIFY,
    TORCH,
    Contender,
    python_of,
)
from benchmarks.report import write_report
from sae_lens.atomic_files import atomic_write_json

log = logging.getLogger("benchmarks")

PARTS = ("step", "activations", "runner", "startup")
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
BARE = Contender("bare forward pass", "ours-bare")
STARTS = {
    "import": "import sae_lens",
    "use": "from sae_lens import SAE, ActivationsStore, HookedSAETransformer, TrainingSAE, "
    "LanguageModelSAERunnerConfig, SAETrainingRunner",
}


@dataclass(frozen=True)
class StepCase:
    """One size at which training steps are compared."""

    architecture: str
    d_in: int
    d_sae: int
    l0: int
    batch: int
    precision: str

    def name(self) -> str:
        """For the log."""
        return f"{self.architecture} {self.d_in}->{self.d_sae} l0 {self.l0} {self.precision}"


def step_cases(options: argparse.Namespace) -> Iterator[StepCase]:
    """The sizes asked for: by default three widths with three densities each, and a small one."""
    if options.sizes:
        sizes = [tuple(int(number) for number in size.split(",")) for size in options.sizes]
    elif options.device == "cuda":
        sizes = [(768, 24576, 64, 4096), (2304, 24576, 64, 4096), (2304, 131072, 64, 8192)]
    elif options.quick:
        sizes = [(256, 4096, 32, 512)]
    else:
        sizes = [(768, d_sae, k, 1024) for k in (64, 16, 256) for d_sae in (12288, 3072, 24576)]
        sizes.append((64, 512, 16, 1024))
    if options.base_case_only:
        sizes = sizes[:1]
    for precision in options.precision:
        for d_in, d_sae, l0, batch in sizes:
            for architecture in options.architectures:
                yield StepCase(architecture, d_in, d_sae, l0, batch, precision)


class Benchmark:
    """Runs the parts that are asked for, and keeps their results on disk as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder: Path = options.output.absolute()  # workers run elsewhere
        self.file = self.folder / "benchmarks.json"
        given = dict(pair.split("=", 1) for pair in options.venv)
        self.given = {family: Path(path).absolute() for family, path in given.items()}
        self.workers = Workers(options.threads, self.folder / "logs")
        self.results: dict[str, Any] = {"about": about(options)}
        self.earlier: list[dict[str, Any]] = []
        if options.go_on and self.file.exists():
            self.earlier = json.loads(self.file.read_text()).get("step", [])

    def run(self) -> None:
        """All parts."""
        for part in self.options.only:
            with self.workers:
                getattr(self, f"run_{part}")()
        self.results["about"]["load_after"] = round(os.getloadavg()[0], 1)
        self.results["about"]["finished"] = datetime.now().astimezone().isoformat("T", "minutes")
        self.save()

    def save(self) -> None:
        """What there is so far, and what load the machine had on the way."""
        about = self.results["about"]
        about.setdefault("loads", []).append(round(os.getloadavg()[0], 1))
        atomic_write_json(self.file, self.results, indent=1)

    def entries(
        self, contenders: list[Contender], options: dict[str, Any], rounds: int, warm_up: int
    ) -> list[Entry]:
        """Contenders with their interpreters; those that cannot be installed are left out."""
        entries = []
        for contender in contenders:
            try:
                python = python_of(contender, self.folder / "venvs", self.given)
            except subprocess.CalledProcessError as error:
                log.warning("%s is left out: %s", contender.name, error)
                continue
            values = {**options, "family": contender.family, "device": self.options.device}
            entries.append(Entry(contender, python, values, rounds, warm_up))
        return entries

    def chosen(self, *contenders: Contender) -> list[Contender]:
        """Of these, the ones that are not excluded."""
        return [c for c in contenders if c.family not in self.options.without]

    def run_step(self) -> None:
        """Training steps."""
        self.results["step"] = []
        for case in step_cases(self.options):
            done = [one for one in self.earlier if vars(case).items() <= one.items()]
            if done:
                self.results["step"].append(done[0])
                continue
            log.info("step: %s", case.name())
            contenders = [OURS, OURS_5, SAE_LENS_6, SAE_LENS_5]
            if case.architecture == "topk":
                contenders += [SPARSIFY, DICTIONARY_LEARNING]
            values = {**vars(case), "form": self.options.form}
            is_small = case.d_sae < 1024
            rounds = self.options.rounds * (4 if is_small else 1)
            # the first step of ours is dense, in which it measures whether it should be
            entries = self.entries([FLOOR, *self.chosen(*contenders)], values, rounds, 2)
            for entry in entries:
                if not entry.contender.is_ours and not is_small:
                    entry.rounds, entry.warm_up = rounds_of_others(rounds), 1
            floor, *entries = hold("step_worker.py", entries, self.workers)
            self.results["step"].append(self.step_result(case, floor, entries))
            self.save()

    def step_result(self, case: StepCase, floor: Entry, entries: list[Entry]) -> dict[str, Any]:
        """Figures of one case."""
        clock = self.options.clock
        floor_s = median(floor, clock)
        flops = 2 * case.batch * case.d_in * case.d_sae
        lines = []
        for entry in entries:
            seconds = median(entry, clock)
            line = {
                "contender": entry.contender.name,
                "floors": ratio(seconds, floor_s),
                "wall_s": median(entry, "wall"),
                "cpu_s": median(entry, "cpu"),
                "tokens_per_s": None if seconds is None else round(case.batch / seconds),
                **entry.closing,
            }
            lines.append(line | ({"error": entry.error} if entry.error else {}))
            log.info("  %-22s %s floors %s", line["contender"], line["floors"], entry.closing)
        return {
            **vars(case),
            "floor_s": floor_s,
            "floor_gflops": None if not floor_s else round(flops / floor_s / 1e9, 1),
            "results": lines,
        }

    def run_activations(self) -> None:
        """Tokens a second that are gathered, against the bare forward pass."""
        log.info("activations")
        values = {"layer": 4, "context": 128, "prompts": 16, "buffer": 8}
        if self.options.quick:
            values.update(layer=2, context=64, prompts=8, buffer=4)
        contenders = [BARE, *self.chosen(OURS_5, SAE_LENS_6, SAE_LENS_5)]
        entries = self.entries(contenders, values, self.options.rounds, 1)
        hold("activations_worker.py", entries, self.workers)
        self.results["activations"] = {**values, "results": self.per_token(entries)}
        self.save()

    def run_runner(self) -> None:
        """Tokens a second of whole runs."""
        log.info("runner")
        values = {"layer": 4, "context": 128, "prompts": 16, "buffer": 4, "tokens": 16384,
                  "batch": 1024, "d_sae": 12288, "l0": 32}  # fmt: skip
        if self.options.quick:
            values.update(layer=1, context=64, prompts=4, tokens=2048, batch=512, d_sae=3072)
        contenders = self.chosen(OURS_5, SAE_LENS_6, SAE_LENS_5)
        entries = self.entries(contenders, values, max(1, self.options.rounds // 3), 1)
        hold("runner_worker.py", entries, self.workers)
        self.results["runner"] = {**values, "results": self.per_token(entries)}
        self.save()

    def per_token(self, entries: list[Entry]) -> list[dict[str, Any]]:
        """Tokens a second of each entry, and its time relative to the first one's."""
        first = seconds_per_token(entries[0], self.options.clock)
        lines = []
        for entry in entries:
            seconds = seconds_per_token(entry, self.options.clock)
            line = {
                "contender": entry.contender.name,
                "tokens_per_s": None if seconds is None else round(1 / seconds),
                "times_the_first": ratio(seconds, first),
                **entry.closing,
            }
            lines.append(line | ({"error": entry.error} if entry.error else {}))
            log.info("  %s", line)
        return lines

    def run_startup(self) -> None:
        """Seconds until the package is imported, and until its main names are."""
        log.info("startup")
        contenders = self.chosen(OURS, SAE_LENS_6, SAE_LENS_5)
        entries = self.entries(contenders, {}, 0, 0)
        times: dict[tuple[str, str], list[float]] = {}
        for number in range(1 + (1 if self.options.quick else 3)):
            for kind, code in {"torch": "import torch", **STARTS}.items():
                for entry in entries:
                    seconds = time_of(entry, code, self.options.clock, self.folder)
                    if number:  # the first one fills the cache of files
                        times.setdefault((entry.contender.name, kind), []).append(seconds)
        self.results["startup"] = {"code": STARTS, "results": []}
        for entry in entries:
            name = entry.contender.name
            line = {
                kind: round(statistics.median(times[name, kind]), 3) for kind in ("torch", *STARTS)
            }
            self.results["startup"]["results"].append({"contender": name, **line})
            log.info("  %-22s %s", name, line)
        self.save()


def rounds_of_others(rounds: int) -> int:
    """How many units count of contenders whose steps take several times as long as ours."""
    return max(2, rounds // 2)


def time_of(entry: Entry, code: str, clock: str, folder: Path) -> float:
    """Seconds that a fresh process takes for some code."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [str(entry.python), "-c", code],
        check=True,
        capture_output=True,
        cwd=folder / "venvs",
        env=environment_of(entry.contender),
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu if clock == "cpu" else wall


def about(options: argparse.Namespace) -> dict[str, Any]:
    """How and where the run was made."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
    values = {
        "command": "python -m benchmarks " + shlex.join(without_paths(sys.argv[1:])),
        "started": datetime.now().astimezone().isoformat("T", "minutes"),
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": options.threads,
        "clock": options.clock,
        "rounds": options.rounds,
        "rounds_of_others": rounds_of_others(options.rounds),
        "device": options.device,
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": TORCH,
        "system": platform.platform(terse=True),
    }
    if options.device == "cuda":
        import torch

        values["gpu"] = torch.cuda.get_device_name()
    return values


def without_paths(arguments: list[str]) -> list[str]:
    """Arguments but for those that name places on this machine."""
    kept, is_kept = [], True
    for argument in arguments:
        if argument.startswith("--"):
            is_kept = argument not in ("--venv", "--output")
        if is_kept:
            kept.append(argument)
    return kept


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    families = [contender.family for contender in CONTENDERS]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="one small size, few rounds")
    parser.add_argument(
        "--go-on", action="store_true", help="keep the training steps that the output has already"
    )
    parser.add_argument("--sizes", nargs="+", metavar="D_IN,D_SAE,ACTIVE,BATCH")
    parser.add_argument("--base-case-only", action="store_true", help="the first size alone")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--without", nargs="+", choices=families, default=[])
    parser.add_argument("--rounds", type=int, help="steps of ours that count; default 7, quick 3")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "tf32", "bfloat16"], default=["float32"],
        help="bfloat16 is autocast; tf32 on CUDA only",
    )  # fmt: skip
    parser.add_argument("--form", choices=["auto", "dense", "sparse"], default="auto")
    parser.add_argument(
        "--venv", nargs="+", default=[], metavar="FAMILY=PATH",
        help=f"environments to use instead of making them; families: {', '.join(families)}",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("bench_output"))
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 3 if options.quick else 7
    (options.output / "venvs").mkdir(parents=True, exist_ok=True)
    Benchmark(options).run()
    write_report([options.output / "benchmarks.json"], options.output / "benchmarks.svg", None)


if __name__ == "__main__":
    main()
