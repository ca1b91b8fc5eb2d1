"""The files of OpenAI's sparse_autoencoder library (Gao et al. 2024), GPT-2 small v4 and v5.

One torch file with `pre_bias`, `encoder.weight`, `latent_bias`, `decoder.weight` and, for top-k
SAEs, `activation` and `activation_state_dict`. There is no config: hook, model and layer come from
the path or as overrides. What it computes, with LN for top-k SAEs only:

    LN(x) = (x - mean) / (std + 1e-5), unbiased std
    z = act((LN(x) - pre_bias) W_enc^T + latent_bias)
    x' = (z W_dec^T + pre_bias) * std + mean
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from sae_lens.errors import SAELoadError
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, top_k
from sae_lens.loading.sources import Source, Tensors, read_torch_values

LOCATIONS = {
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_delta_mlp": "hook_mlp_out",
    "mlp_post_act": "mlp.hook_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}


def hook_of(path: str) -> tuple[str, int]:
    """(hook name, layer) from a path such as `resid_post_mlp_v5_32k/autoencoders/3.pt`."""
    layer = re.search(r"(?:layer_)?(\d+)(?:\.pt)?$", path)
    location = next((hook for name, hook in LOCATIONS.items() if name in path), "hook_resid_post")
    number = int(layer[1]) if layer else 0
    return f"blocks.{number}.{location}", number


def convert_config(path: str, content: dict[str, Any], where: str = "the SAE") -> dict[str, Any]:
    """From the activation that the file names, its tensors' shapes and the path."""
    activation = str(content.get("activation", "ReLU"))
    if "encoder.weight" not in content:
        raise SAELoadError(f"{where} has no 'encoder.weight'; it holds {sorted(content)}.")
    if activation not in ("ReLU", "TopK"):
        raise SAELoadError(f"{where} uses {activation!r}; only ReLU and TopK can be loaded.")
    d_sae, d_in = content["encoder.weight"].shape
    hook_name, layer = hook_of(path)
    cfg = flat_config(
        architecture="standard",
        d_in=d_in,
        d_sae=d_sae,
        hook_name=hook_name,
        hook_layer=layer,
        model_name="gpt2-small",
        dataset_path="Skylion007/openwebtext",
        context_size=64,
        apply_b_dec_to_input=True,
    )
    if activation == "TopK":
        k = content.get("activation_state_dict", {}).get("k") or content.get("k")
        if k is None:
            raise SAELoadError(f"{where} is a TopK SAE without its k.")
        cfg |= {**top_k(int(k)), "normalize_activations": "layer_norm"}
    return cfg


def convert_tensors(tensors: Tensors) -> NamedTensors:
    """Our names; linear layers' weights are transposed. A tied decoder is the encoder itself."""
    tied = "decoder.weight" not in tensors
    encoder = tensors.take("encoder.weight")
    yield "W_enc", encoder.T
    yield "W_dec", encoder if tied else tensors.take("decoder.weight").T
    yield "b_enc", tensors.take("latent_bias")
    yield "b_dec", tensors.take("pre_bias")


def read_config(source: Source) -> dict[str, Any]:
    """From the file itself and its path."""
    content = read_torch_values(source.file(source.path))
    return convert_config(source.path, content, f"{source.name}/{source.path}")


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From the file that the path names."""
    path = source.file(source.path)
    values = read_torch_values(path)
    yield from convert_tensors(
        Tensors({name: v for name, v in values.items() if isinstance(v, Tensor)}, path)
    )


CONVERTER = Converter("openai_sparse_autoencoder", read_config, read_tensors)
