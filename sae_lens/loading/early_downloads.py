"""Functions for the first published SAEs, from before there was a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.loading.converters import connor_rob_hook_z
from sae_lens.loading.hub import HubSource
from sae_lens.loading.migrations import handle_config_defaulting
from sae_lens.loading.sources import Tensors, join, read_safetensors_lazily


def load_sparsity(path: str | Path) -> Tensor:
    """log10 firing frequencies `[d_sae]` from the folder of an SAE.

    Raises:
        FileNotFoundError: the folder has no sparsity file.
    """
    file = Path(path) / SPARSITY_FILENAME
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: this SAE was saved without its sparsity.")
    return read_safetensors_lazily(file).take("sparsity")


def download_sae_from_hf(
    repo_id: str = "jbloom/GPT2-Small-SAEs-Reformatted",
    folder_name: str = "blocks.0.hook_resid_pre",
    force_download: bool = False,
) -> tuple[str, str, str | None]:
    """Fetch the files of an SAE in our own format.

    Returns:
        Paths of config, weights and, if the SAE has it, sparsity.
    """
    source = HubSource(repo_id, folder_name, force_download)
    config = source.file(join(source.path, SAE_CFG_FILENAME))
    weights = source.file(join(source.path, SAE_WEIGHTS_FILENAME))
    sparsity = source.optional_file(join(source.path, SPARSITY_FILENAME))
    return str(config), str(weights), None if sparsity is None else str(sparsity)


def convert_connor_rob_config(
    state_dict: dict[str, Tensor], config: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our flat config and tensors from those of an attention-output SAE for GPT-2 small."""
    cfg_dict = handle_config_defaulting(connor_rob_hook_z.convert_config(config))
    return cfg_dict, dict(connor_rob_hook_z.convert_tensors(Tensors(dict(state_dict))))
