"""Functions for the first published SAEs, at their 5.x path."""

from sae_lens.loading.early_downloads import download_sae_from_hf, load_sparsity
from sae_lens.saes.pretrained import (
    convert_connor_rob_sae_to_our_saelens_format,
    get_gpt2_res_jb_saes,
    get_gpt2_small_ckrk_attn_out_saes,
    load_sae_from_local_path,
)

__all__ = [
    "convert_connor_rob_sae_to_our_saelens_format",
    "download_sae_from_hf",
    "get_gpt2_res_jb_saes",
    "get_gpt2_small_ckrk_attn_out_saes",
    "load_sae_from_local_path",
    "load_sparsity",
]
