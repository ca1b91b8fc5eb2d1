"""The benchmark's side: several workers at once, asked for one unit of work in turn.

All contenders of a case are alive together, and take turns (A B C, A B C, ...), so that whatever
else the machine does falls on all of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
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
        rounds: how many units count.
        warm_up: units before them that do not.
        units: the answer to each request that was not a warm-up.
        closing: the answer at the end.
        error: why it has no figures, if it has none.
    """

    contender: Contender
    python: Path
    options: dict[str, Any]
    rounds: int
    warm_up: int
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
    """A process of a contender, which does one unit of work at each request within a case."""

    def __init__(self, script: str, entry: Entry, threads: int, log_folder: Path) -> None:
        environment = environment_of(entry.contender)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
        log_folder.mkdir(parents=True, exist_ok=True)
        self.log = log_folder / f"{entry.contender.family}.log"
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(entry.python), str(HERE / script), entry.contender.family],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=log_folder,
                start_new_session=True,
            )

    def tell(self, word: str) -> None:
        """Send a line: the options of a case, or a request within it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises `RuntimeError` when the case's process died instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"died": self.process.wait()}
        if "died" in answer:
            raise RuntimeError(self.last_words())
        return answer

    def last_words(self) -> str:
        """The last line of what it wrote to its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the worker ended without a word"

    def end(self) -> None:
        """Leave no process behind, neither its own nor a case's."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


class Workers:
    """The workers of all contenders: started when first needed, they go from case to case."""

    def __init__(self, threads: int, log_folder: Path) -> None:
        self.threads, self.log_folder = threads, log_folder
        self.workers: dict[tuple[str, str], Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.end()
        self.workers.clear()

    def of(self, script: str, entry: Entry) -> Worker:
        """The one that runs a script for an entry's contender."""
        key = (script, entry.contender.family)
        if key in self.workers and self.workers[key].process.poll() is not None:
            self.workers.pop(key).end()
        if key not in self.workers:
            self.workers[key] = Worker(script, entry, self.threads, self.log_folder)
        return self.workers[key]


def hold(script: str, entries: list[Entry], workers: Workers) -> list[Entry]:
    """Let all entries do their units in turn; those with fewer of them join in later.

    An entry whose process dies is out of the contest; its `error` says why.
    """
    pairs = [(entry, workers.of(script, entry)) for entry in entries]

    def ask(entry: Entry, worker: Worker, word: str | None, waits: bool = True) -> dict[str, Any]:
        if entry.error is None:
            try:
                if word is not None:
                    worker.tell(word)
                return worker.answer() if waits else {}
            except (RuntimeError, OSError, json.JSONDecodeError) as error:
                entry.error = str(error)[:300]
                log.warning("%s: %s (%s)", entry.contender.name, entry.error, worker.log)
        return {}

    for entry, worker in pairs:
        ask(entry, worker, json.dumps(entry.options), waits=False)
    for entry, worker in pairs:
        ask(entry, worker, None)
    turns = max(entry.warm_up + entry.rounds for entry in entries)
    for left in range(turns, 0, -1):
        for entry, worker in pairs:
            if left > entry.warm_up + entry.rounds:
                continue
            answer = ask(entry, worker, "run")
            if left <= entry.rounds and entry.error is None:
                entry.units.append(answer)
    for entry, worker in pairs:
        entry.closing = ask(entry, worker, "end")
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
