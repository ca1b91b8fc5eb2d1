"""Loaders in their 5.2 form: by release and id, with an object of options for configs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sae_lens.loading import directory
from sae_lens.loading.converters import CONVERTERS
from sae_lens.loading.disk import complete_config, read_config_file, read_sae_components_from_disk
from sae_lens.loading.load import (
    apply_overrides,
    get_conversion_loader_name,
    huggingface_config_loader,
    huggingface_loader,
)

Components = tuple[dict[str, Any], dict[str, Tensor], Tensor | None]


class PretrainedSaeLoader(Protocol):
    """A 5.2 loader: a release and an id give config, tensors and log sparsity."""

    def __call__(
        self,
        release: str,
        sae_id: str,
        device: str = "cpu",
        force_download: bool = False,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> Components:
        """Config, tensors and log sparsity (or None)."""
        ...


@dataclass
class SAEConfigLoadOptions:
    """How to read a config.

    Attributes:
        device: goes into the config.
        force_download: fetch again what the cache holds.
        d_sae_override: replaces the number of features.
        layer_override: replaces the layer, in the hook's name too.
        cfg_overrides: values that win over the file's.
    """

    device: str | None = None
    force_download: bool = False
    d_sae_override: int | None = None
    layer_override: int | None = None
    cfg_overrides: dict[str, Any] | None = field(default_factory=dict)


def _config(format_name: str, repo_id: str, folder_name: str, options: SAEConfigLoadOptions) -> Any:
    cfg_dict = huggingface_config_loader(CONVERTERS[format_name])(
        repo_id, folder_name, options.device, options.force_download, options.cfg_overrides
    )
    return apply_overrides(cfg_dict, _replaced(cfg_dict, options))


def _replaced(cfg_dict: dict[str, Any], options: SAEConfigLoadOptions) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if options.d_sae_override is not None:
        values["d_sae"] = options.d_sae_override
    if options.layer_override is not None:
        values["hook_layer"] = options.layer_override
        values["hook_name"] = re.sub(
            r"^blocks\.\d+\.", f"blocks.{options.layer_override}.", cfg_dict["hook_name"]
        )
    return values


def _components(
    format_name: str,
    release: str,
    sae_id: str,
    device: str | None,
    force_download: bool,
    cfg_overrides: dict[str, Any] | None,
    d_sae_override: int | None = None,
    layer_override: int | None = None,
) -> Components:
    repo_id, folder_name = directory.get_repo_id_and_folder_name(release, sae_id)
    cfg_dict, state_dict, sparsity = huggingface_loader(CONVERTERS[format_name])(
        repo_id, folder_name, device or "cpu", force_download, cfg_overrides
    )
    options = SAEConfigLoadOptions(d_sae_override=d_sae_override, layer_override=layer_override)
    return apply_overrides(cfg_dict, _replaced(cfg_dict, options)), state_dict, sparsity


def get_sae_config(release: str, sae_id: str, options: SAEConfigLoadOptions) -> dict[str, Any]:
    """The config of a released SAE, by the loader of its format."""
    repo_id, folder_name = directory.get_repo_id_and_folder_name(release, sae_id)
    overrides = {
        **directory.get_config_overrides(release, sae_id),
        **(options.cfg_overrides or {}),
    }
    options = SAEConfigLoadOptions(
        options.device,
        options.force_download,
        options.d_sae_override,
        options.layer_override,
        overrides,
    )
    return _config(get_conversion_loader_name(release), repo_id, folder_name, options)


def get_sae_config_from_hf(
    repo_id: str, folder_name: str, options: SAEConfigLoadOptions
) -> dict[str, Any]:
    """The config of an SAE in our own format."""
    return _config("sae_lens", repo_id, folder_name, options)


def get_connor_rob_hook_z_config(
    repo_id: str, folder_name: str, options: SAEConfigLoadOptions
) -> dict[str, Any]:
    """The config of an attention-output SAE for GPT-2 small."""
    return _config("connor_rob_hook_z", repo_id, folder_name, options)


def get_gemma_2_config(
    repo_id: str, folder_name: str, options: SAEConfigLoadOptions
) -> dict[str, Any]:
    """The config of a Gemma Scope SAE."""
    return _config("gemma_2", repo_id, folder_name, options)


def get_llama_scope_config(
    repo_id: str, folder_name: str, options: SAEConfigLoadOptions
) -> dict[str, Any]:
    """The config of a Llama Scope SAE."""
    return _config("llama_scope", repo_id, folder_name, options)


def get_dictionary_learning_config_1(
    repo_id: str, folder_name: str, options: SAEConfigLoadOptions
) -> dict[str, Any]:
    """The config of an SAE by the dictionary_learning library."""
    return _config("dictionary_learning_1", repo_id, folder_name, options)


def sae_lens_loader(
    release: str,
    sae_id: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> Components:
    """Load an SAE in our own format."""
    return _components("sae_lens", release, sae_id, device, force_download, cfg_overrides)


def connor_rob_hook_z_loader(
    release: str,
    sae_id: str,
    device: str | None = None,
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> Components:
    """Load an attention-output SAE for GPT-2 small."""
    return _components("connor_rob_hook_z", release, sae_id, device, force_download, cfg_overrides)


def gemma_2_sae_loader(
    release: str,
    sae_id: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
    d_sae_override: int | None = None,
    layer_override: int | None = None,
) -> Components:
    """Load a Gemma Scope SAE."""
    return _components(
        "gemma_2",
        release,
        sae_id,
        device,
        force_download,
        cfg_overrides,
        d_sae_override,
        layer_override,
    )


def llama_scope_sae_loader(
    release: str,
    sae_id: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
    d_sae_override: int | None = None,
    layer_override: int | None = None,
) -> Components:
    """Load a Llama Scope SAE."""
    return _components(
        "llama_scope",
        release,
        sae_id,
        device,
        force_download,
        cfg_overrides,
        d_sae_override,
        layer_override,
    )


def dictionary_learning_sae_loader_1(
    release: str,
    sae_id: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> Components:
    """Load an SAE by the dictionary_learning library."""
    return _components(
        "dictionary_learning_1", release, sae_id, device, force_download, cfg_overrides
    )


def load_pretrained_sae_lens_sae_components(
    cfg_path: str | Path, weight_path: str | Path, device: str = "cpu"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors from the two files of our own format, wherever they lie."""
    cfg_dict = complete_config(read_config_file(cfg_path))
    cfg_dict["device"] = device
    return read_sae_components_from_disk(cfg_dict, weight_path, device)
