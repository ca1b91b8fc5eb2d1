"""Foreign formats, one per file. Each is a pure function from its config and tensors to ours."""

from __future__ import annotations

from sae_lens.loading.converters import (
    connor_rob_hook_z,
    deepseek_r1,
    dictionary_learning_1,
    e2e_sae,
    gemma_2,
    gemma_2_transcoder,
    gemma_3,
    goodfire,
    llama_scope,
    llama_scope_r1_distill,
    mntss_clt_layer_transcoder,
    mwhanna_transcoder,
    openai_sparse_autoencoder,
    qwen_scope,
    sae_lens,
    sparsify,
    temporal,
)
from sae_lens.loading.converters.base import Converter

CONVERTERS: dict[str, Converter] = {
    module.CONVERTER.name: module.CONVERTER
    for module in (
        sae_lens,
        connor_rob_hook_z,
        gemma_2,
        gemma_2_transcoder,
        gemma_3,
        llama_scope,
        llama_scope_r1_distill,
        dictionary_learning_1,
        deepseek_r1,
        sparsify,
        mwhanna_transcoder,
        mntss_clt_layer_transcoder,
        qwen_scope,
        goodfire,
        temporal,
        openai_sparse_autoencoder,
        e2e_sae,
    )
}
