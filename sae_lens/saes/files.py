"""Our folder format: `sae_weights.safetensors`, `cfg.json`, optionally `sparsity.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens.atomic_files import atomic_save_safetensors, atomic_write_json
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME


def write_sae_folder(
    path: str | Path,
    config: dict[str, Any],
    state_dict: dict[str, Tensor],
    sparsity: Tensor | None = None,
) -> tuple[Path, Path] | tuple[Path, Path, Path]:
    """Write an SAE folder, each file atomically; existing files are replaced.

    Returns:
        The paths of weights, config and, if given, sparsity.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights_path = folder / SAE_WEIGHTS_FILENAME
    config_path = folder / SAE_CFG_FILENAME
    atomic_save_safetensors(state_dict, weights_path)
    atomic_write_json(config_path, jsonable(config))
    if sparsity is None:
        return weights_path, config_path
    sparsity_path = folder / SPARSITY_FILENAME
    atomic_save_safetensors({"sparsity": sparsity}, sparsity_path)
    return weights_path, config_path, sparsity_path


def jsonable(value: Any) -> Any:
    """`value` with dtypes, devices and paths as strings and tuples as lists."""
    if isinstance(value, dict):
        return {str(name): jsonable(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value)
    return value
