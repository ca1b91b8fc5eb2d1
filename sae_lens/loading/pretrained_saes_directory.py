"""The registry's functions at their 6.x path."""

from sae_lens.loading.directory import (
    PretrainedSAELookup,
    get_config_overrides,
    get_norm_scaling_factor,
    get_pretrained_saes_directory,
    get_repo_id_and_folder_name,
)

__all__ = [
    "PretrainedSAELookup",
    "get_config_overrides",
    "get_norm_scaling_factor",
    "get_pretrained_saes_directory",
    "get_repo_id_and_folder_name",
]
