"""Qwen Scope: top-k SAEs for Qwen 3 and 3.5, `layer<L>.sae.pt` in a repository per width and k."""

from __future__ import annotations

import re
from typing import Any

from sae_lens.loading.converters.base import (
    Converter,
    NamedTensors,
    flat_config,
    layer_in,
    top_k,
)
from sae_lens.loading.sources import Source, Tensors, read_torch_file

MODEL_WIDTHS = {
    "Qwen3-1.7B-Base": 2048,
    "Qwen3-8B-Base": 4096,
    "Qwen3-30B-A3B-Base": 2048,
    "Qwen3.5-2B-Base": 2048,
    "Qwen3.5-9B-Base": 4096,
    "Qwen3.5-27B": 5120,
    "Qwen3.5-35B-A3B-Base": 2048,
}


def convert_config(repo_id: str, path: str) -> dict[str, Any]:
    """From the names of repository and file.

    Raises:
        ValueError: for a name of another form or an unknown model.
    """
    found = re.search(r"SAE-Res-(.+)-W(\d+)K-L0_(\d+)", repo_id)
    if found is None:
        raise ValueError(
            f"The repository {repo_id!r} is not named SAE-Res-<model>-W<n>K-L0_<k>, "
            "from which width and k would be read."
        )
    model, width, k = found[1], int(found[2]) * 1024, int(found[3])
    if model not in MODEL_WIDTHS:
        raise ValueError(f"Unknown Qwen model {model!r}; known are {', '.join(MODEL_WIDTHS)}.")
    layer = layer_in(path, r"layer(\d+)")
    cfg = flat_config(
        architecture="topk",
        d_in=MODEL_WIDTHS[model],
        d_sae=width,
        hook_name=f"blocks.{layer}.hook_resid_post",
        hf_hook_name=f"model.layers.{layer}",
        hook_layer=layer,
        model_name=f"Qwen/{model}",
        dataset_path=None,
        context_size=1024,
    )
    return {**cfg, **top_k(k)}


def convert_tensors(tensors: Tensors) -> NamedTensors:
    """Both matrices are transposed."""
    yield "W_enc", tensors.take("W_enc").T
    yield "W_dec", tensors.take("W_dec").T
    yield "b_enc", tensors.take("b_enc")
    yield "b_dec", tensors.take("b_dec")


def read_config(source: Source) -> dict[str, Any]:
    """From names; no file is read."""
    return convert_config(source.name, source.path)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From the file that the registry names."""
    yield from convert_tensors(read_torch_file(source.file(source.path)))


CONVERTER = Converter("qwen_scope", read_config, read_tensors)
