"""Uploading at its 5.x path; its home is `sae_lens.loading.publish`."""

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.loading.publish import (
    _build_sae_path,
    _create_default_readme,
    _repo_exists,
    _repo_file_exists,
    _upload_sae,
    _validate_sae_path,
    upload_saes_to_huggingface,
)

__all__ = [
    "SAE_CFG_FILENAME",
    "SAE_WEIGHTS_FILENAME",
    "SPARSITY_FILENAME",
    "_build_sae_path",
    "_create_default_readme",
    "_repo_exists",
    "_repo_file_exists",
    "_upload_sae",
    "_validate_sae_path",
    "upload_saes_to_huggingface",
]
