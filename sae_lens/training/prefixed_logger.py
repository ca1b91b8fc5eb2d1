"""Several trainings in one logged run: each under a name of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sae_lens.training.loggers import LoggedArtifact, MetricLogger


class PrefixedLogger:
    """Hands everything on with `name/` before the names of metrics and artifacts.

    The run itself is opened and closed by whoever owns the logger behind it.
    """

    def __init__(self, name: str, logger: MetricLogger) -> None:
        self.name = name
        self.logger = logger

    @property
    def is_active(self) -> bool:
        """Whether the logger behind it is."""
        return self.logger.is_active

    def start(self, config: Mapping[str, Any]) -> None:
        """Do nothing: the shared run is open."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log under `name/...`."""
        self.logger.log({f"{self.name}/{key}": value for key, value in metrics.items()}, step)

    def log_artifact(self, artifact: LoggedArtifact) -> None:
        """Log under `name__...`, since names of artifacts hold no slashes."""
        self.logger.log_artifact(replace(artifact, name=f"{self.name}__{artifact.name}"))

    def finish(self, error: BaseException | None = None) -> None:
        """Do nothing: others may still log."""

    def state_dict(self) -> dict[str, Any]:
        """That of the logger behind it."""
        return self.logger.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: the owner of the run goes on with it."""
