"""Temporal SAEs (Lubana, Rager et al. 2025): `conf.yaml` and `latest_ckpt.safetensors`."""

from __future__ import annotations

from typing import Any

from sae_lens.constants import DTYPE_MAP
from sae_lens.loading.converters.base import (
    Converter,
    NamedTensors,
    flat_config,
    layer_in,
    required,
)
from sae_lens.loading.sources import Source, Tensors, join, read_safetensors_lazily, read_yaml

OPTIONS = (
    "n_heads",
    "n_attn_layers",
    "bottleneck_factor",
    "sae_diff_type",
    "kval_topk",
    "tied_weights",
)


def convert_config(path: str, config: dict[str, Any], where: str = "the SAE") -> dict[str, Any]:
    """From `llm`, `sae` and `data` of `conf.yaml` and the layer in the path."""
    layer = layer_in(path)
    d_in = required(config, "llm", "dimin", where=where)
    dtype = str((config.get("data") or {}).get("dtype", "float32"))
    return flat_config(
        architecture="temporal",
        d_in=d_in,
        d_sae=int(d_in * required(config, "sae", "exp_factor", where=where)),
        dtype=dtype if dtype in DTYPE_MAP else "float32",
        hook_name=f"blocks.{layer}.hook_resid_post",
        hook_layer=layer,
        model_name=None,
        dataset_path=None,
        context_size=None,
        apply_b_dec_to_input=True,
        normalize_activations="constant_scalar_rescale",
        activation_normalization_factor=required(config, "sae", "scaling_factor", where=where),
        **{name: required(config, "sae", name, where=where) for name in OPTIONS},
    )


def convert_tensors(tensors: Tensors, tied_weights: bool) -> NamedTensors:
    """`D`, `b` and, for an encoder of its own, `E` get our names; attention layers keep theirs.

    With tied weights the encoder is the decoder's transpose and an `E` in the file is not used.
    """
    yield "W_dec", tensors.take("D")
    yield "b_dec", tensors.take("b")
    if not tied_weights:
        yield "W_enc", tensors.take("E")
    for name in list(tensors):
        if name.startswith("attn_layers."):
            yield name, tensors.take(name)


def read_config(source: Source) -> dict[str, Any]:
    """From `conf.yaml`."""
    config = read_yaml(source.file(join(source.path, "conf.yaml")))
    return convert_config(source.path, config, source.name)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From `latest_ckpt.safetensors`."""
    path = source.file(join(source.path, "latest_ckpt.safetensors"))
    yield from convert_tensors(read_safetensors_lazily(path, device), cfg["tied_weights"])


CONVERTER = Converter("temporal", read_config, read_tensors)
