"""Where a sparse training step's time goes, in encoder products ("floors").

    OMP_NUM_THREADS=1 python -m benchmarks.profile_step --clock cpu

The steps are those of `bench_step.py`. Functions of the library are timed where the step calls
them, each without what it calls of the others, so that the parts add up to the step; what is in
none of them is "the rest": plain torch between the sparse operations, and autograd. Prints a
Markdown table, medians over the steps in units of the median floor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

from benchmarks.bench_step import ARCHITECTURES, Steps, add_options
from sae_lens.saes.training_step import reported_features

# Where a step looks each function up, and the part of the step that it is.
_FUNCTIONS = {
    "sae_lens.kernels.encoder_product:encoder_product": "encoder product",
    "sae_lens.saes.sparse_training:find_entries": "finding entries",
    "sae_lens.saes.topk:top_entries": "finding entries",
    "sae_lens.kernels.active_set:stable_order": "order by feature",
    "sae_lens.kernels.autograd:decode_together": "decoding",
    "sae_lens.kernels.autograd:entry_products": "products at entries",
    "sae_lens.kernels.autograd:_SparseDecode.backward": "decoder's gradient",
    "sae_lens.kernels.autograd:_HiddenAtEntries.backward": "encoder's gradient",
    "benchmarks.bench_step:gradient_norm": "clipping and Adam",
    "benchmarks.bench_step:clip_and_step": "clipping and Adam",
    "sae_lens.training.statistics:FiringStatistics.update": "firing statistics",
}
REST = "the rest"
PARTS = (*dict.fromkeys(_FUNCTIONS.values()), REST)


class Stopwatch:
    """Time of parts that may lie within each other; each counts without those inside it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.open: list[str] = []
        self.totals: dict[str, float] = defaultdict(float)
        self.since = 0.0

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """What happens inside is of this part."""
        self._note()
        self.open.append(part)
        try:
            yield
        finally:
            self._note()
            self.open.pop()

    def _note(self) -> None:
        now = self.clock()
        if self.open:
            self.totals[self.open[-1]] += now - self.since
        self.since = now

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, with its calls counted as a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.running(part):
                return function(*args, **kwargs)

        return call


@contextmanager
def watched(stopwatch: Stopwatch) -> Iterator[None]:
    """Inside, the library's functions of `_FUNCTIONS` are timed."""
    patches = []
    for place, part in _FUNCTIONS.items():
        module, _, path = place.partition(":")
        owner: Any = import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        timed: Any = stopwatch.timed(getattr(owner, name), part)
        is_static = isinstance(vars(owner)[name], staticmethod)
        patches.append(mock.patch.object(owner, name, staticmethod(timed) if is_static else timed))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def profile(options: argparse.Namespace, architecture: str) -> dict[str, float]:
    """Floors of each part and of the step of one architecture, and how many features are active."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    steps = Steps(options, architecture, "sparse")
    floors, active = [], []
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(options.warmup + options.steps):
        stopwatch = Stopwatch(clock)
        with watched(stopwatch), stopwatch.running(REST):
            output = steps.take(number)
        active.append(reported_features(output)._nnz() / options.batch)
        start = clock()
        steps.take_floor(number)
        if number >= options.warmup:
            floors.append(clock() - start)
            for part, times in parts.items():
                times.append(stopwatch.totals[part])
    floor = statistics.median(floors)
    values = {part: statistics.median(times) / floor for part, times in parts.items()}
    totals = [sum(times) for times in zip(*parts.values(), strict=True)]
    step = statistics.median(totals) / floor
    return {**values, "a step": step, "active features a token": statistics.median(active)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    add_options(parser)
    options = parser.parse_args()
    columns = {name: profile(options, name) for name in options.architectures}
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for part in next(iter(columns.values())):
        cells = [f"{column[part]:.{3 if column[part] < 10 else 1}f}" for column in columns.values()]
        print(f"| {part} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
