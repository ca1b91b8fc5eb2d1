"""Names of files and dtypes that the whole library shares."""

import torch

SAE_WEIGHTS_FILENAME = "sae_weights.safetensors"
SAE_CFG_FILENAME = "cfg.json"
SPARSITY_FILENAME = "sparsity.safetensors"
SPARSIFY_WEIGHTS_FILENAME = "sae.safetensors"
RUNNER_CFG_FILENAME = "runner_cfg.json"
ACTIVATIONS_STORE_STATE_FILENAME = "activations_store_state.safetensors"

EMBEDDED_MODEL_NAME = "sae-lens-tiny-python"
EMBEDDED_DATASET_NAME = "sae-lens-tiny-python-text"

# The version of the nested file format that we write. Readers of 6.x folders decide by this
# number, not by the version of the library, whether the nested keys are to be believed.
FILE_FORMAT_VERSION = "6.54.12"

DTYPE_MAP: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "torch.float32": torch.float32,
    "torch.float64": torch.float64,
    "torch.float16": torch.float16,
    "torch.bfloat16": torch.bfloat16,
}


def dtype_name(dtype: torch.dtype | str) -> str:
    """The short name of a dtype: `torch.float32` and "torch.float32" both give "float32"."""
    return str(dtype).removeprefix("torch.")
