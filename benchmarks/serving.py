"""The worker's side: do one unit of work when the benchmark asks for it, and answer in JSON lines.

A worker imports what its contender needs and then waits for cases; each is a process of its own
that begins with those imports done.

Imported by workers in the environments of all contenders, so it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class Server:
    """Answers on the standard output it found; what libraries print goes nowhere."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.environ.setdefault("WANDB_MODE", "disabled")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        warnings.filterwarnings("ignore")
        logging.disable(logging.CRITICAL)
        self._started: tuple[float, float] | None = None
        self.synchronize: Callable[[], None] = lambda: None
        self.final_values: Callable[[], dict[str, Any]] = dict

    def next_case(self) -> dict[str, Any]:
        """The options of a case. Returns in a new process, which ends with the case."""
        while line := sys.stdin.readline():
            process = os.fork()
            if not process:
                return json.loads(line)
            _, status = os.waitpid(process, 0)
            if status:
                self._answer({"died": status})
        os._exit(0)

    def wait_for_request(self, **values: Any) -> None:
        """Answer the last request with its times, if there was one, and wait for the next.

        Does not return when there is none: the process then ends.
        """
        self.synchronize()
        if self._started is not None:
            wall, processor = self._started
            values["wall"] = time.perf_counter() - wall
            values["cpu"] = time.process_time() - processor
        else:
            reset_peak_memory()
            values["ready"] = True
        self._answer(values)
        request = sys.stdin.readline().strip()
        if request != "run":
            self.finish()
        self._started = (time.perf_counter(), time.process_time())

    def finish(self) -> NoReturn:
        """Answer with the closing values and end the process, whatever it is in the midst of."""
        self._answer({"peak_memory_gb": round(peak_memory() / 1e9, 3), **self.final_values()})
        os._exit(0)

    def _answer(self, values: dict[str, Any]) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()


def reset_peak_memory() -> None:
    """Forget the peak so far, where the system allows that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes of memory that the process held since the last reset."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
