"""The files of a `Trainer`'s checkpoint: plain data and tensors only, each written whole.

step_N/config.json                the SAE's hyper-parameters
step_N/sae_weights.safetensors    its weights
step_N/trainer.pt                 counters, thresholds, dead statistics, config as a dict
step_N/optimizer.pt, scheduler.pt their state dicts, when they exist
step_N/wandb_run_id.json          {"wandb_run_id": id}, when a run is attached
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sae_lens.atomic_files import atomic_save_safetensors, atomic_write_bytes, atomic_write_json
from sae_lens.constants import SAE_WEIGHTS_FILENAME, dtype_name
from sae_lens.lm_saes.config import TrainerConfig
from sae_lens.saes import TrainingSAE
from sae_lens.saes.files import jsonable

CONFIG_FILENAME = "config.json"
TRAINER_FILENAME = "trainer.pt"
OPTIMIZER_FILENAME = "optimizer.pt"
SCHEDULER_FILENAME = "scheduler.pt"
WANDB_FILENAME = "wandb_run_id.json"


def save_sae(sae: TrainingSAE, folder: Path) -> None:
    """Config and weights as they are while training: with their scaling factor, unfolded."""
    config = jsonable(sae.cfg.to_dict())
    config["activation_norm_scaling_factor"] = getattr(sae, "activation_norm_scaling_factor", None)
    atomic_write_json(folder / CONFIG_FILENAME, config, indent=2)
    atomic_save_safetensors(dict(sae.state_dict()), folder / SAE_WEIGHTS_FILENAME)


def load_sae_weights(sae: TrainingSAE, folder: Path) -> None:
    """Give `sae` the weights and the scaling factor of a checkpoint."""
    sae.load_state_dict(load_file(folder / SAE_WEIGHTS_FILENAME, device=str(sae.device)))
    config = json.loads((folder / CONFIG_FILENAME).read_text())
    sae.activation_norm_scaling_factor = config.get("activation_norm_scaling_factor")  # type: ignore[assignment]


def save_plain(value: Any, path: Path) -> None:
    """`torch.save` of plain data and tensors, atomically."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    atomic_write_bytes(path, buffer.getvalue())


def load_plain(path: Path, device: torch.device | str = "cpu") -> Any:
    """What `save_plain` wrote; never unpickles objects."""
    return torch.load(path, map_location=device, weights_only=True)


def config_as_dict(cfg: TrainerConfig) -> dict[str, Any]:
    """The config as plain data. The autocast dtype, which configs leave out, goes by its name."""
    values = cfg.model_dump()
    values["amp_dtype"] = None if cfg.amp_dtype is None else dtype_name(cfg.amp_dtype)
    return values


def config_of_dict(values: dict[str, Any]) -> TrainerConfig:
    """The config in a checkpoint. The checkpoint that it went on from need not exist any more."""
    return TrainerConfig.model_validate({**values, "from_pretrained_path": None})
