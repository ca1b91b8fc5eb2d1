"""What loaders and config getters look like, for annotations and for writing one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class PretrainedSaeHuggingfaceLoader(Protocol):
    """Reads an SAE of some format from a repository."""

    def __call__(
        self,
        repo_id: str,
        folder_name: str,
        device: str = "cpu",
        force_download: bool = False,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], Tensor | None]:
        """Config, tensors and log sparsity (or None)."""
        ...


class PretrainedSaeConfigHuggingfaceLoader(Protocol):
    """Reads the config of an SAE of some format from a repository, without its weights."""

    def __call__(
        self,
        repo_id: str,
        folder_name: str,
        device: str | None = None,
        force_download: bool = False,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The config."""
        ...


class PretrainedSaeDiskLoader(Protocol):
    """Reads an SAE of some format from a folder."""

    def __call__(
        self,
        path: str | Path,
        device: str = "cpu",
        cfg_overrides: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and tensors."""
        ...


class PretrainedSaeConfigDiskLoader(Protocol):
    """Reads the config of an SAE of some format from a folder."""

    def __call__(
        self,
        path: str | Path,
        device: str | None = None,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The config."""
        ...
