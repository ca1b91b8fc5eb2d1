"""Where the numbers of a run go: W&B, a file of JSON lines, several of them, or nowhere.

The trainer knows the interface `MetricLogger` only. Histograms are logged as the `Histogram` value
below, which every logger writes in its own way.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class Histogram:
    """The distribution of some values, as a metric."""

    values: Any

    def counts_and_edges(self, n_bins: int = _HISTOGRAM_BINS) -> tuple[list[int], list[float]]:
        """Counts of `n_bins` equal bins over the finite values, and the bins' edges."""
        # In float64 there is room for the bins between any two numbers of the dtypes we train in.
        values = torch.as_tensor(self.values).detach().to("cpu", torch.float64).numpy().ravel()
        counts, edges = np.histogram(values[np.isfinite(values)], bins=n_bins)
        return counts.tolist(), edges.tolist()


@dataclass(frozen=True)
class LoggedArtifact:
    """Files that belong to a moment of the run, such as a checkpoint's weights."""

    name: str
    type: str
    files: Sequence[Path]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] | None = None


class MetricLogger(Protocol):
    """What the trainer asks of a logger."""

    @property
    def is_active(self) -> bool:
        """False when nothing comes of logging, so that the trainer need not compute anything."""
        ...

    def start(self, config: Mapping[str, Any]) -> None:
        """Open the run. `config` is kept with it."""
        ...

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Record numbers, nested groups of numbers and `Histogram`s of one training step."""
        ...

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Keep a copy of files beside the metrics."""
        ...

    def finish(self, error: BaseException | None = None) -> None:
        """Close the run, as failed when `error` is given. Harmless when it was never opened."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs to go on with the same run."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run of `state` at the next `start`."""
        ...


class NullLogger:
    """Logs nothing."""

    is_active = False

    def start(self, config: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Do nothing."""

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None = None) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


class WandbLogger:
    """Logs to a Weights & Biases run; the package is imported when something is first logged.

    What goes wrong there never ends a training. When no run can be opened, one is opened offline,
    whose files `wandb sync` sends later. Numbers that W&B does not take are counted, kept in
    `gap_path`, and warned of.

    Args:
        project: project of the run.
        entity: user or team that owns it.
        run_name: name of the run.
        run_id: id of the run; W&B makes one when None.
        gap_path: file of JSON lines for what W&B does not take.
    """

    is_active = True

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        gap_path: str | Path | None = None,
    ) -> None:
        self.project = project
        self.entity = entity
        self.run_name = run_name
        self.run_id = run_id
        self.gap_path = None if gap_path is None else Path(gap_path)
        self._resumes = False
        self._missed: list[int] = []  # first step, last step, how many

    def start(self, config: Mapping[str, Any]) -> None:
        """Open the run with `wandb.init`; offline when that fails."""
        import wandb

        options: dict[str, Any] = {"resume": "allow"} if self._resumes else {}
        options |= {
            "project": self.project,
            "entity": self.entity,
            "config": dict(config),
            "name": self.run_name,
            "id": self.run_id,
        }
        if self._try("open a run", wandb.init, **options):
            return
        if self._try("open an offline run", wandb.init, mode="offline", **options):
            logger.warning("W&B logs offline; `wandb sync` sends the files later.")

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log to the open run at `step`."""
        import wandb

        if self._try("log", lambda: wandb.log(_with_wandb_histograms(metrics), step=step)):
            self._tell_of_gap()
            return
        first, _, n = self._missed or [step, step, 0]
        self._missed = [first, step, n + 1]
        if self.gap_path is not None:
            try:
                JsonLinesLogger(self.gap_path).log(metrics, step)
            except OSError as error:
                logger.warning("%s cannot be written either: %s", self.gap_path, error)

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Log the files as an artifact of the open run."""
        self._try(f"log the artifact {artifact.name}", self._log_artifact, artifact)

    def _log_artifact(self, artifact: LoggedArtifact) -> None:
        import wandb

        made = wandb.Artifact(artifact.name, type=artifact.type, metadata=dict(artifact.metadata))
        for file in artifact.files:
            made.add_file(str(file))
        aliases = None if artifact.aliases is None else list(artifact.aliases)
        wandb.log_artifact(made, aliases=aliases)

    def finish(self, error: BaseException | None = None) -> None:
        """Close the run; W&B marks it as failed when there was an error."""
        import wandb

        self._tell_of_gap()
        if error is None:
            self._try("finish", wandb.finish)
        else:
            self._try("finish", wandb.finish, exit_code=1)

    def state_dict(self) -> dict[str, Any]:
        """The id of the run."""
        import wandb

        run = getattr(wandb, "run", None)
        return {"run_id": run.id if run is not None else self.run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next `start` go on with the run of `state`."""
        if state.get("run_id") is not None:
            self.run_id = state["run_id"]
            self._resumes = True

    def _try(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Whether W&B did it; warns at the first failure of a row."""
        try:
            call(*args, **kwargs)
        except Exception as error:
            if not self._missed:
                logger.warning(
                    "W&B could not %s (%s: %s); training goes on.",
                    what, type(error).__name__, error,
                )  # fmt: skip
            return False
        return True

    def _tell_of_gap(self) -> None:
        if not self._missed:
            return
        first, last, n = self._missed
        kept = "" if self.gap_path is None else f"; they are in {self.gap_path}"
        logger.warning("W&B did not take %d records of steps %d to %d%s.", n, first, last, kept)
        self._missed = []


class JsonLinesLogger:
    """Appends one JSON object per logged step to a file.

    A line holds `step` and the metrics under their names; a histogram is
    `{"counts": [...], "edges": [...]}`, a number that is not finite is null.
    """

    is_active = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._resumes = False

    def start(self, config: Mapping[str, Any]) -> None:
        """Make the folder, and write the config as the first line: `{"config": {...}}`.

        A run that goes on appends to its file: a line `{"resumed": true, "config": {...}}`, then
        its steps; some of them may be there already, with the same numbers.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._end_broken_line()
        resumed = {"resumed": True} if self._resumes else {}
        self._write({**resumed, "config": json_ready(config)})

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append a line. It is on disk when this returns."""
        self._write({"step": step, **json_ready(metrics)})

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Note where the files are."""
        self._write(
            {
                "artifact": artifact.name,
                "type": artifact.type,
                "files": [str(file) for file in artifact.files],
                "aliases": list(artifact.aliases or ()),
            }
        )

    def finish(self, error: BaseException | None = None) -> None:
        """Note an error, if there was one. The file is closed after every line anyway."""
        if error is not None:
            self._write({"error": f"{type(error).__name__}: {error}"})

    def state_dict(self) -> dict[str, Any]:
        """The path: the file is only ever appended to."""
        return {"path": str(self.path)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a run; in this logger's own file, which may be another one."""
        self._resumes = "path" in state

    def _end_broken_line(self) -> None:
        """A process that was killed may have left half a line; what follows begins a new one."""
        if not self.path.is_file() or self.path.stat().st_size == 0:
            return
        with open(self.path, "rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")

    def _write(self, line: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


class SeveralLoggers:
    """Hands everything on to several loggers."""

    def __init__(self, loggers: Sequence[MetricLogger]) -> None:
        self.loggers = list(loggers)

    @property
    def is_active(self) -> bool:
        """Whether any of them is."""
        return any(one.is_active for one in self.loggers)

    def start(self, config: Mapping[str, Any]) -> None:
        """Start all of them."""
        for one in self.loggers:
            one.start(config)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log to all of them."""
        for one in self.loggers:
            one.log(metrics, step)

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Log the artifact to all of them."""
        for one in self.loggers:
            one.log_artifact(artifact)

    def finish(self, error: BaseException | None = None) -> None:
        """Finish all of them."""
        for one in self.loggers:
            one.finish(error)

    def state_dict(self) -> dict[str, Any]:
        """Their states together; no two kinds of logger use the same names in theirs."""
        state: dict[str, Any] = {}
        for one in self.loggers:
            state.update(one.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Every logger takes what is its own, also from a run with other loggers."""
        for one in self.loggers:
            one.load_state_dict(state)


def make_logger(cfg: Any) -> MetricLogger:
    """The logger that a config with `log_to_wandb`, `wandb_*` and `log_to_jsonl` asks for."""
    loggers: list[MetricLogger] = []
    if cfg.log_to_wandb:
        folder = getattr(cfg, "checkpoint_path", None)
        gap_path = None if folder is None else Path(folder) / "wandb_gap.jsonl"
        loggers.append(
            WandbLogger(cfg.wandb_project, cfg.wandb_entity, cfg.run_name, cfg.wandb_id, gap_path)
        )
    jsonl_path = getattr(cfg, "log_to_jsonl", None)
    if jsonl_path is not None:
        loggers.append(JsonLinesLogger(jsonl_path))
    if not loggers:
        return NullLogger()
    return loggers[0] if len(loggers) == 1 else SeveralLoggers(loggers)


def json_ready(value: Any) -> Any:
    """`value` with tensors, paths, histograms and non-finite numbers in a form JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, Histogram):
        counts, edges = value.counts_and_edges()
        return {"counts": counts, "edges": edges}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return json_ready(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def _with_wandb_histograms(metrics: Mapping[str, Any]) -> dict[str, Any]:
    import wandb

    converted: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            converted[key] = _with_wandb_histograms(value)
        elif isinstance(value, Histogram):
            counts, edges = value.counts_and_edges()
            converted[key] = wandb.Histogram(np_histogram=(np.array(counts), np.array(edges)))
        else:
            converted[key] = value
    return converted
