"""Read an SAE folder in our own format as plain data: a config dict and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_lens.constants import DTYPE_MAP, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, dtype_name
from sae_lens.errors import SAELoadError
from sae_lens.loading.migrations import flatten_config, handle_config_defaulting, is_nested_config

# Running estimates that stay in the precision in which they were kept.
KEPT_IN_THEIR_DTYPE = ("topk_threshold",)


def sae_lens_disk_loader(
    path: str | Path,
    device: str | torch.device = "cpu",
    cfg_overrides: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read `cfg.json` and `sae_weights.safetensors` from a folder.

    Args:
        path: the folder.
        device: where the tensors go; also the config's `device`.
        cfg_overrides: values that win over the file's.

    Returns:
        The completed config dict and the tensors in the config's dtype.

    Raises:
        FileNotFoundError: when the folder or one of the files is missing.
        SAELoadError: when a file cannot be read as what it should be.
    """
    cfg_dict = get_sae_lens_config_from_disk(path, device, cfg_overrides)
    return read_sae_components_from_disk(cfg_dict, Path(path) / SAE_WEIGHTS_FILENAME, device)


def get_sae_lens_config_from_disk(
    path: str | Path,
    device: str | torch.device | None = None,
    cfg_overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Read and complete `cfg.json` of a folder, without the weights."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no SAE folder at {folder}.")
    cfg_dict = read_config_file(folder / SAE_CFG_FILENAME)
    cfg_dict = complete_config(cfg_dict)
    if device is not None:
        cfg_dict["device"] = str(device)
    cfg_dict.update(cfg_overrides or {})
    return cfg_dict


def read_config_file(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; `SAELoadError` when it is something else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. An SAE folder holds {SAE_CFG_FILENAME} and {SAE_WEIGHTS_FILENAME}."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SAELoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SAELoadError(f"{path} holds a JSON {type(value).__name__}; an object is needed.")
    return value


def complete_config(cfg_dict: dict[str, Any]) -> dict[str, Any]:
    """Flat and nested keys, with what older files leave out filled in."""
    if is_nested_config(cfg_dict):
        return flatten_config(cfg_dict)
    return handle_config_defaulting(dict(cfg_dict))


def read_sae_components_from_disk(
    cfg_dict: dict[str, Any],
    weight_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read tensors one by one, each cast to the config's dtype, and settle the scaling factor.

    A tensor `scaling_factor` of ones is dropped; another one needs the config's
    `finetuning_scaling_factor` and is renamed to that. Both change `cfg_dict` in place.

    Raises:
        SAELoadError: for a file that is no whole safetensors file, an unknown dtype, or a scaling
            factor that the config does not expect.
    """
    wanted = _dtype_of(cfg_dict, dtype, weight_path)
    state_dict = read_safetensors(weight_path, device, wanted)
    settle_scaling_factor(cfg_dict, state_dict, weight_path)
    return cfg_dict, state_dict


def settle_scaling_factor(
    cfg_dict: dict[str, Any], state_dict: dict[str, Tensor], where: str | Path
) -> None:
    """Drop a `scaling_factor` of ones, or give it the name of the parameter it is; in place.

    The config's `finetuning_scaling_factor` then says whether there is one.

    Raises:
        SAELoadError: for a factor that the config does not expect.
    """
    if "scaling_factor" not in state_dict:
        cfg_dict["finetuning_scaling_factor"] = "finetuning_scaling_factor" in state_dict
        return
    factor = state_dict.pop("scaling_factor")
    if torch.allclose(factor, torch.ones_like(factor)):
        cfg_dict["finetuning_scaling_factor"] = False
    elif cfg_dict.get("finetuning_scaling_factor"):
        state_dict["finetuning_scaling_factor"] = factor
    else:
        raise SAELoadError(
            f"{where} holds a scaling_factor other than ones, but its config does not set "
            "finetuning_scaling_factor; set it to true in cfg.json to use the factor."
        )


read_sae_from_disk = read_sae_components_from_disk


def read_safetensors(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Tensors of a safetensors file, read and cast one at a time."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                tensor = file.get_tensor(name)
                keep = dtype is None or name in KEPT_IN_THEIR_DTYPE
                tensors[name] = tensor if keep else tensor.to(dtype)
    except (SafetensorError, OSError, ValueError) as error:
        raise SAELoadError(
            f"{path} cannot be read as a safetensors file ({error}); it may be truncated or of "
            "another format. Copy or download it again."
        ) from error
    return tensors


def _dtype_of(
    cfg_dict: dict[str, Any], dtype: torch.dtype | str | None, weight_path: str | Path
) -> torch.dtype:
    name = dtype_name(dtype if dtype is not None else cfg_dict.get("dtype", ""))
    if name not in DTYPE_MAP:
        raise SAELoadError(
            f"The config of {weight_path} names the dtype {name!r}; allowed are "
            f"{', '.join(n for n in DTYPE_MAP if '.' not in n)}."
        )
    return DTYPE_MAP[name]
