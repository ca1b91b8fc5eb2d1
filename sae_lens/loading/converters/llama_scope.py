"""Llama Scope (He et al. 2024): JumpReLU SAEs for Llama 3.1 8B.

The SAEs see activations scaled to an average norm of sqrt(d); the factor is folded into the weights
after loading. The published threshold is one number for unscaled activations, hence the rescaling.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sae_lens.hook_names import layer_of
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, required
from sae_lens.loading.sources import Source, Tensors, join, read_json, read_safetensors_lazily

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"


def threshold_of(hyperparameters: dict[str, Any], where: str = "the SAE") -> float:
    """jump_relu_threshold * sqrt(d) / (average norm of the inputs)."""
    average_norm = required(hyperparameters, "dataset_average_activation_norm", "in", where=where)
    scale = math.sqrt(required(hyperparameters, "d_model", where=where)) / average_norm
    return required(hyperparameters, "jump_relu_threshold", where=where) * scale


def convert_config(hyperparameters: dict[str, Any], where: str = "the SAE") -> dict[str, Any]:
    """From `hyperparams.json`."""
    hook_name = required(hyperparameters, "hook_point_in", where=where)
    return flat_config(
        architecture="jumprelu",
        d_in=required(hyperparameters, "d_model", where=where),
        d_sae=required(hyperparameters, "d_sae", where=where),
        dtype="bfloat16",
        hook_name=hook_name,
        hook_layer=layer_of(hook_name),
        model_name="meta-llama/Llama-3.1-8B",
        dataset_path="cerebras/SlimPajama-627B",
        context_size=1024,
        normalize_activations="expected_average_only_in",
    )


def convert_tensors(tensors: Tensors) -> NamedTensors:
    """Linear layers' weights are transposed."""
    yield "W_enc", tensors.take("encoder.weight").T
    yield "W_dec", tensors.take("decoder.weight").T
    yield "b_enc", tensors.take("encoder.bias")
    yield "b_dec", tensors.take("decoder.bias")


def read_config(source: Source) -> dict[str, Any]:
    """From `hyperparams.json`."""
    return convert_config(read_json(source.file(join(source.path, CONFIG))), source.name)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From `checkpoints/final.safetensors`, with one threshold for all features."""
    hyperparameters = read_json(source.file(join(source.path, CONFIG)))
    tensors = read_safetensors_lazily(source.file(join(source.path, WEIGHTS)), device)
    yield from convert_tensors(tensors)
    yield "threshold", torch.full((cfg["d_sae"],), threshold_of(hyperparameters, source.name))


CONVERTER = Converter("llama_scope", read_config, read_tensors)
