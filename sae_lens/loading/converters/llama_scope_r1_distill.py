"""Llama Scope for DeepSeek-R1-Distill-Llama-8B: thresholds per feature, kept as logarithms.

The base configuration names the base model, as the files' own library does; the registry has the
distilled one.
"""

from __future__ import annotations

from typing import Any

from sae_lens.hook_names import layer_of
from sae_lens.loading.converters import llama_scope
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, required
from sae_lens.loading.sources import Source, Tensors, join, read_json, read_safetensors_lazily


def convert_config(config: dict[str, Any], where: str = "the SAE") -> dict[str, Any]:
    """From `config.json`; the number of features is d_model * expansion_factor."""
    d_in = required(config, "d_model", where=where)
    hook_name = required(config, "hook_point_in", where=where)
    return flat_config(
        architecture="jumprelu",
        d_in=d_in,
        d_sae=int(d_in * required(config, "expansion_factor", where=where)),
        hook_name=hook_name,
        hook_layer=layer_of(hook_name),
        model_name="meta-llama/Llama-3.1-8B",
        dataset_path="cerebras/SlimPajama-627B",
        context_size=1024,
        normalize_activations="expected_average_only_in",
    )


def convert_tensors(tensors: Tensors) -> NamedTensors:
    """As Llama Scope, with threshold = exp(log_jumprelu_threshold)."""
    yield from llama_scope.convert_tensors(tensors)
    yield "threshold", tensors.take("log_jumprelu_threshold").float().exp()


def read_config(source: Source) -> dict[str, Any]:
    """From `config.json`."""
    return convert_config(read_json(source.file(join(source.path, "config.json"))), source.name)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From `sae_weights.safetensors`."""
    path = source.file(join(source.path, "sae_weights.safetensors"))
    yield from convert_tensors(read_safetensors_lazily(path, device))


CONVERTER = Converter("llama_scope_r1_distill", read_config, read_tensors)
