"""The benchmark's side: several workers at once, asked for one unit of work in turn.

All contenders of a case are alive together, and take turns (A B C, A B C, ...), so that whatever
else the machine does falls on all of them.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environments import Contender

log = logging.getLogger("benchmarks")

HERE = Path(__file__).parent


@dataclass
class Entry:
    """A contender in a case: what runs it, and what it answered.

    Attributes:
        contender: who.
        python: the interpreter of its environment.
        options: what the worker is told.
        units: the answer to each request that was not a warm-up.
        closing: the answer at the end.
        error: why it has no figures, if it has none.
    """

    contender: Contender
    python: Path
    options: dict[str, Any]
    units: list[dict[str, Any]] = field(default_factory=list)
    closing: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def environment_of(contender: Contender) -> dict[str, str]:
    """Variables for a contender's processes; ours import the library beside this folder."""
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if contender.is_ours:
        environment["PYTHONPATH"] = str(HERE.parent)
    return environment


class Worker:
    """A process that does one unit of work at each request."""

    def __init__(self, script: str, entry: Entry, threads: int, log_folder: Path) -> None:
        environment = environment_of(entry.contender)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
        log_folder.mkdir(parents=True, exist_ok=True)
        self.log = log_folder / f"{entry.contender.family}.log"
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(entry.python), str(HERE / script), json.dumps(entry.options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=log_folder,
            )

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises `RuntimeError` when the process died instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else "the worker ended without a word")
        return json.loads(line)

    def request(self, word: str) -> dict[str, Any]:
        """Ask and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """Leave no process behind."""
        self.process.kill()
        self.process.communicate()


def hold(
    script: str, entries: list[Entry], rounds: int, warm_up: int, threads: int, log_folder: Path
) -> list[Entry]:
    """Let all entries do `rounds` units in turn after `warm_up` ones that do not count.

    An entry whose worker dies is out of the contest; its `error` says why.
    """
    workers = [(entry, Worker(script, entry, threads, log_folder)) for entry in entries]

    def ask(entry: Entry, worker: Worker, word: str | None) -> dict[str, Any]:
        if entry.error is None:
            try:
                return worker.answer() if word is None else worker.request(word)
            except (RuntimeError, OSError, json.JSONDecodeError) as error:
                entry.error = str(error)[:300]
                log.warning("%s: %s (%s)", entry.contender.name, entry.error, worker.log)
        return {}

    try:
        for entry, worker in workers:
            ask(entry, worker, None)
        for number in range(warm_up + rounds):
            for entry, worker in workers:
                answer = ask(entry, worker, "run")
                if number >= warm_up and entry.error is None:
                    entry.units.append(answer)
        for entry, worker in workers:
            entry.closing = ask(entry, worker, "end")
    finally:
        for _, worker in workers:
            worker.end()
    return entries


def median(entry: Entry, clock: str) -> float | None:
    """Median time of a unit in seconds, None for an entry that failed."""
    if entry.error is not None or not entry.units:
        return None
    return statistics.median(unit[clock] for unit in entry.units)


def seconds_per_token(entry: Entry, clock: str) -> float | None:
    """Time of all units over their tokens, for work that comes in lumps."""
    if entry.error is not None or not entry.units:
        return None
    return sum(unit[clock] for unit in entry.units) / sum(unit["tokens"] for unit in entry.units)


def ratio(one: float | None, other: float | None) -> float | None:
    """`one / other` to three digits, None where one of them is missing."""
    return None if one is None or not other else float(f"{one / other:.3g}")
