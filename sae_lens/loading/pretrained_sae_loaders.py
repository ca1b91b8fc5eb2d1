"""The loaders of all formats under the names that the 5.x and 6.x releases gave them.

A loader takes a repository and a folder or file in it and gives `(config, tensors, log sparsity or
None)`; a config getter gives the config; disk loaders take a path. The tables at the end name them
by format. The 5.2 forms, which take a release and an id, are in `release_loaders.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sae_lens.constants import (
    DTYPE_MAP,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSIFY_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.loading.converters import CONVERTERS
from sae_lens.loading.disk import (
    get_sae_lens_config_from_disk,
    read_sae_components_from_disk,
    read_sae_from_disk,
    sae_lens_disk_loader,
)
from sae_lens.loading.load import (
    disk_config_loader,
    disk_loader,
    get_conversion_loader_name,
    huggingface_config_loader,
    huggingface_loader,
    load_sae_config_from_huggingface,
)
from sae_lens.loading.migrations import handle_config_defaulting
from sae_lens.loading.protocols import (
    PretrainedSaeConfigDiskLoader,
    PretrainedSaeConfigHuggingfaceLoader,
    PretrainedSaeDiskLoader,
    PretrainedSaeHuggingfaceLoader,
)
from sae_lens.loading.release_loaders import (
    PretrainedSaeLoader,
    SAEConfigLoadOptions,
    connor_rob_hook_z_loader,
    dictionary_learning_sae_loader_1,
    gemma_2_sae_loader,
    get_connor_rob_hook_z_config,
    get_dictionary_learning_config_1,
    get_gemma_2_config,
    get_llama_scope_config,
    get_sae_config,
    get_sae_config_from_hf,
    llama_scope_sae_loader,
    load_pretrained_sae_lens_sae_components,
    sae_lens_loader,
)

_LOADERS = {name: huggingface_loader(converter) for name, converter in CONVERTERS.items()}
_GETTERS = {name: huggingface_config_loader(converter) for name, converter in CONVERTERS.items()}

sae_lens_huggingface_loader = _LOADERS["sae_lens"]
connor_rob_hook_z_huggingface_loader = _LOADERS["connor_rob_hook_z"]
gemma_2_sae_huggingface_loader = _LOADERS["gemma_2"]
gemma_2_transcoder_huggingface_loader = _LOADERS["gemma_2_transcoder"]
gemma_3_sae_huggingface_loader = _LOADERS["gemma_3"]
llama_scope_sae_huggingface_loader = _LOADERS["llama_scope"]
llama_scope_r1_distill_sae_huggingface_loader = _LOADERS["llama_scope_r1_distill"]
dictionary_learning_sae_huggingface_loader_1 = _LOADERS["dictionary_learning_1"]
deepseek_r1_sae_huggingface_loader = _LOADERS["deepseek_r1"]
sparsify_huggingface_loader = _LOADERS["sparsify"]
mwhanna_transcoder_huggingface_loader = _LOADERS["mwhanna_transcoder"]
mntss_clt_layer_huggingface_loader = _LOADERS["mntss_clt_layer_transcoder"]
qwen_scope_sae_huggingface_loader = _LOADERS["qwen_scope"]
goodfire_huggingface_loader = _LOADERS["goodfire"]
temporal_sae_huggingface_loader = _LOADERS["temporal"]
openai_sparse_autoencoder_huggingface_loader = _LOADERS["openai_sparse_autoencoder"]
e2e_sae_huggingface_loader = _LOADERS["e2e_sae"]

get_sae_lens_config_from_hf = _GETTERS["sae_lens"]
get_connor_rob_hook_z_config_from_hf = _GETTERS["connor_rob_hook_z"]
get_gemma_2_config_from_hf = _GETTERS["gemma_2"]
get_gemma_2_transcoder_config_from_hf = _GETTERS["gemma_2_transcoder"]
get_gemma_3_config_from_hf = _GETTERS["gemma_3"]
get_llama_scope_config_from_hf = _GETTERS["llama_scope"]
get_llama_scope_r1_distill_config_from_hf = _GETTERS["llama_scope_r1_distill"]
get_dictionary_learning_config_1_from_hf = _GETTERS["dictionary_learning_1"]
get_deepseek_r1_config_from_hf = _GETTERS["deepseek_r1"]
get_sparsify_config_from_hf = _GETTERS["sparsify"]
get_mwhanna_transcoder_config_from_hf = _GETTERS["mwhanna_transcoder"]
get_mntss_clt_layer_config_from_hf = _GETTERS["mntss_clt_layer_transcoder"]
get_qwen_scope_config_from_hf = _GETTERS["qwen_scope"]
get_goodfire_config_from_hf = _GETTERS["goodfire"]
get_temporal_sae_config_from_hf = _GETTERS["temporal"]

sparsify_disk_loader = disk_loader(CONVERTERS["sparsify"])
get_sparsify_config_from_disk = disk_config_loader(CONVERTERS["sparsify"])

NAMED_PRETRAINED_SAE_LOADERS: dict[str, Callable[..., Any]] = dict(_LOADERS)
NAMED_PRETRAINED_SAE_CONFIG_GETTERS: dict[str, Callable[..., dict[str, Any]]] = dict(_GETTERS)

__all__ = [
    "DTYPE_MAP",
    "NAMED_PRETRAINED_SAE_CONFIG_GETTERS",
    "NAMED_PRETRAINED_SAE_LOADERS",
    "PretrainedSaeConfigDiskLoader",
    "PretrainedSaeConfigHuggingfaceLoader",
    "PretrainedSaeDiskLoader",
    "PretrainedSaeHuggingfaceLoader",
    "PretrainedSaeLoader",
    "SAEConfigLoadOptions",
    "SAE_CFG_FILENAME",
    "SAE_WEIGHTS_FILENAME",
    "SPARSIFY_WEIGHTS_FILENAME",
    "SPARSITY_FILENAME",
    "connor_rob_hook_z_huggingface_loader",
    "connor_rob_hook_z_loader",
    "deepseek_r1_sae_huggingface_loader",
    "dictionary_learning_sae_huggingface_loader_1",
    "dictionary_learning_sae_loader_1",
    "gemma_2_sae_huggingface_loader",
    "gemma_2_sae_loader",
    "get_connor_rob_hook_z_config",
    "get_connor_rob_hook_z_config_from_hf",
    "get_conversion_loader_name",
    "get_deepseek_r1_config_from_hf",
    "get_dictionary_learning_config_1",
    "get_dictionary_learning_config_1_from_hf",
    "get_gemma_2_config",
    "get_gemma_2_config_from_hf",
    "get_llama_scope_config",
    "get_llama_scope_config_from_hf",
    "get_llama_scope_r1_distill_config_from_hf",
    "get_sae_config",
    "get_sae_config_from_hf",
    "get_sae_lens_config_from_disk",
    "get_sae_lens_config_from_hf",
    "get_sparsify_config_from_disk",
    "get_sparsify_config_from_hf",
    "handle_config_defaulting",
    "llama_scope_r1_distill_sae_huggingface_loader",
    "llama_scope_sae_huggingface_loader",
    "llama_scope_sae_loader",
    "load_pretrained_sae_lens_sae_components",
    "load_sae_config_from_huggingface",
    "read_sae_components_from_disk",
    "read_sae_from_disk",
    "sae_lens_disk_loader",
    "sae_lens_huggingface_loader",
    "sae_lens_loader",
    "sparsify_disk_loader",
    "sparsify_huggingface_loader",
]
