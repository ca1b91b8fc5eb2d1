"""Configs of runs as dictionaries and JSON files."""

from __future__ import annotations

import json
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens.atomic_files import atomic_write_json
from sae_lens.config.logging import LoggingConfig
from sae_lens.config.nested import as_sae_config, run_sae_config
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.errors import stumbling_over
from sae_lens.saes.config import TrainingSAEConfig
from sae_lens.saes.files import jsonable

if TYPE_CHECKING:
    from typing_extensions import Self


class RunFiles:
    """The part of a run's config that writes and reads it."""

    sae: TrainingSAEConfig | None
    logger: LoggingConfig | None

    def to_dict(self) -> dict[str, Any]:
        """All attributes, derived ones too, in a form that JSON can hold."""
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        for name in ("dtype", "device", "act_store_device"):
            values[name] = str(values[name])
        values["sae"] = None if self.sae is None else run_sae_config(self).to_dict()
        values["logger"] = None if self.logger is None else dict(vars(self.logger))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config from which `to_dict` made `values`. Unknown keys are left out."""
        names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        known = {name: value for name, value in values.items() if name in names}
        if known.get("seqpos_slice") is not None:
            known["seqpos_slice"] = tuple(known["seqpos_slice"])
        if isinstance(known.get("sae"), dict):
            known["sae"] = as_sae_config(known["sae"])
        if isinstance(known.get("logger"), dict):
            known["logger"] = LoggingConfig(**known["logger"])
        config = cls(**known)
        if "checkpoint_path" in known and "run_name" in known:
            # A finished config names the run's own folder already; it gets no second one.
            config.checkpoint_path = known["checkpoint_path"]  # type: ignore[attr-defined]
        return config

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the config as JSON.

        Args:
            path: a file ending in `.json`; or a folder, or a prefix, to which `cfg.json` is added.
        """
        atomic_write_json(_config_file(path), jsonable(self.to_dict()), indent=2)

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> Self:
        """Read what `to_json` wrote under the same `path`.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it does not hold a JSON object.
        """
        file = _config_file(path)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{file} holds a {type(values).__name__}, not the fields of a config.")
        with stumbling_over(file, ValueError):
            return cls.from_dict(values)


def _config_file(path: str | PathLike[str]) -> Path:
    text = str(path)
    if text.endswith(".json"):
        return Path(text)
    if Path(text).is_dir():
        return Path(text) / SAE_CFG_FILENAME
    return Path(text + SAE_CFG_FILENAME)
