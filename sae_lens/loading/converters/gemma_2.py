"""Gemma Scope (Lieberum et al. 2024): JumpReLU SAEs for Gemma 2 in `params.npz`.

There is no config file: model, hook and width are read from the names of repository and folder. No
decoder bias is subtracted before encoding. The SAEs on embeddings were trained on embeddings before
Gemma multiplies them by sqrt(d_model), so their weights are rescaled to the model's `hook_embed`.
"""

from __future__ import annotations

import math
import re
from typing import Any

from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, layer_in
from sae_lens.loading.sources import Source, Tensors, join, read_npz

WIDTHS = {
    "width_4k": 4096,
    "width_16k": 16384,
    "width_32k": 32768,
    "width_65k": 65536,
    "width_131k": 131072,
    "width_262k": 262144,
    "width_524k": 524288,
    "width_1m": 1048576,
}
# Longer names first: "2b" is a part of "2b-it".
MODEL_WIDTHS = {"2b-it": 2304, "9b-it": 3584, "27b-it": 4608, "2b": 2304, "9b": 3584, "27b": 4608}
ATTENTION_WIDTHS = {"2b": 2048, "9b": 4096, "27b": 4608}


def model_size(repo_id: str) -> str:
    """The part of a repository's name that says which Gemma 2 it is for.

    Raises:
        ValueError: for a name without such a part.
    """
    for size in MODEL_WIDTHS:
        if re.search(rf"(?<!\d){size}", repo_id):
            return size
    raise ValueError(
        f"The repository {repo_id!r} names none of the Gemma 2 sizes {', '.join(MODEL_WIDTHS)}."
    )


def width_in(path: str) -> int | None:
    """Number of features from `width_16k` in a path; None without one."""
    for name, width in WIDTHS.items():
        if re.search(rf"{name}(?![0-9a-z])", path):
            return width
    return None


def convert_config(repo_id: str, path: str) -> dict[str, Any]:
    """From the names of repository and folder alone.

    Raises:
        ValueError: when model, hook or layer cannot be told from the names.
    """
    size = model_size(repo_id)
    d_in = MODEL_WIDTHS[size]
    name = repo_id.rpartition("/")[2]
    embedding = "embedding" in path
    layer = 0 if embedding else layer_in(path)
    if "res" in name and embedding:
        hook_name = "hook_embed"
    elif "res" in name:
        hook_name = f"blocks.{layer}.hook_resid_post"
    elif "mlp" in name:
        hook_name = f"blocks.{layer}.hook_mlp_out"
    elif "att" in name:
        hook_name = f"blocks.{layer}.attn.hook_z"
        d_in = ATTENTION_WIDTHS.get(size, d_in)
    else:
        raise ValueError(
            f"The repository {repo_id!r} names none of the hooks 'res', 'mlp' and 'att'."
        )
    return flat_config(
        architecture="jumprelu",
        d_in=d_in,
        d_sae=width_in(path),
        hook_name=hook_name,
        hook_layer=layer,
        model_name=f"gemma-2-{size}",
        dataset_path="monology/pile-uncopyrighted",
        context_size=1024,
    )


def convert_tensors(tensors: Tensors, embedding_width: int | None = None) -> NamedTensors:
    """Lower-case `w_enc`, `w_dec` become `W_enc`, `W_dec`; nothing is transposed.

    Args:
        tensors: the archive.
        embedding_width: d_in of an SAE on embeddings, None for others.
    """
    scale = math.sqrt(embedding_width) if embedding_width else 1.0
    for name in list(tensors):
        ours = "W_" + name[2:] if name.startswith("w_") else name
        tensor = tensors.take(name).float()
        if embedding_width and ours == "W_enc":
            tensor = tensor / scale
        elif embedding_width and ours == "W_dec":
            tensor = tensor * scale
        yield ours, tensor


def read_config(source: Source) -> dict[str, Any]:
    """From names; no file is read."""
    return convert_config(source.name, source.path)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From `params.npz`."""
    tensors = read_npz(source.file(join(source.path, "params.npz")))
    yield from convert_tensors(tensors, cfg["d_in"] if "embedding" in source.path else None)


CONVERTER = Converter("gemma_2", read_config, read_tensors)
