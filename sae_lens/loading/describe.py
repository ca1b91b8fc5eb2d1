"""What an SAE folder holds, read without building the SAE: facts, tensors, sparsity, files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.errors import SAELoadError
from sae_lens.loading.disk import get_sae_lens_config_from_disk, read_safetensors

# Trainers write log10(density + 1e-10): what never fired stands at -10.
LOG10_DENSITY_OF_SILENCE = -10.0


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of a weights file, as its header states it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class SparsityFacts:
    """How often features fire, from the log10 densities beside the weights."""

    features: int
    never_fired: int
    below_1e_5: int
    median_log10_density: float
    expected_l0: float
    """The sum of all densities: how many features are active on an average token."""


@dataclass(frozen=True)
class FolderDescription:
    """The contents of an SAE folder in our own format."""

    path: Path
    config: dict[str, Any]
    """`cfg.json`, brought to today's flat keys."""
    tensors: list[TensorFacts]
    sparsity: SparsityFacts | None
    file_sizes: dict[str, int]


def describe_folder(path: str | Path) -> FolderDescription:
    """Read config, tensor headers and sparsity of an SAE folder.

    Raises:
        FileNotFoundError: when the folder, `cfg.json` or the weights are missing; for a folder that
            holds SAE folders (as a checkpoint folder does), the message lists them.
        SAELoadError: when a file cannot be read as what it should be.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / SAE_CFG_FILENAME).exists():
        inside = sorted(str(found.parent) for found in folder.glob(f"**/{SAE_CFG_FILENAME}"))
        if inside:
            raise FileNotFoundError(
                f"{folder} is no SAE folder itself (no {SAE_CFG_FILENAME}), but holds "
                f"{len(inside)}: {', '.join(inside[:5])}{', …' if len(inside) > 5 else ''}."
            )
    config = get_sae_lens_config_from_disk(folder)
    sparsity_path = folder / SPARSITY_FILENAME
    return FolderDescription(
        path=folder,
        config=config,
        tensors=_read_tensor_facts(folder / SAE_WEIGHTS_FILENAME),
        sparsity=_read_sparsity(sparsity_path) if sparsity_path.exists() else None,
        file_sizes={
            file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()
        },
    )


def _read_tensor_facts(path: Path) -> list[TensorFacts]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. An SAE folder holds {SAE_CFG_FILENAME} and {SAE_WEIGHTS_FILENAME}."
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return [
                TensorFacts(name, tuple(part.get_shape()), str(part.get_dtype()))
                for name, part in slices.items()
            ]
    except (SafetensorError, OSError, ValueError) as error:
        raise SAELoadError(
            f"{path} cannot be read as a safetensors file ({error}); it may be truncated or of "
            "another format. Copy or download it again."
        ) from error


def _read_sparsity(path: Path) -> SparsityFacts:
    tensors = read_safetensors(path)
    if "sparsity" not in tensors or tensors["sparsity"].numel() == 0:
        raise SAELoadError(
            f"{path} holds {sorted(tensors)}; one non-empty tensor named 'sparsity' is needed."
        )
    log_density = tensors["sparsity"].flatten().double()
    return SparsityFacts(
        features=log_density.numel(),
        never_fired=int((log_density <= LOG10_DENSITY_OF_SILENCE + 1e-3).sum()),
        below_1e_5=int((log_density < -5).sum()),
        median_log10_density=float(log_density.median()),
        expected_l0=float(torch.pow(10.0, log_density).sum()),
    )
