"""The SAE by qresearch for layer 19 of DeepSeek-R1-Distill-Llama-8B: one `.pt` file."""

from __future__ import annotations

from typing import Any

from sae_lens.loading.converters import llama_scope
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, layer_in
from sae_lens.loading.sources import Source, read_torch_file


def convert_config(path: str) -> dict[str, Any]:
    """From the file's name, which holds the layer as `l19`."""
    layer = layer_in(path.rpartition("/")[2], r"l(\d+)")
    return flat_config(
        architecture="standard",
        d_in=4096,
        d_sae=16 * 4096,
        dtype="bfloat16",
        hook_name=f"blocks.{layer}.hook_resid_post",
        hook_layer=layer,
        model_name="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        dataset_path="lmsys/lmsys-chat-1m",
        context_size=1024,
    )


# The same two linear layers.
convert_tensors = llama_scope.convert_tensors


def read_config(source: Source) -> dict[str, Any]:
    """From the file's name."""
    return convert_config(source.path)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From the file that the registry names."""
    yield from convert_tensors(read_torch_file(source.file(source.path)))


CONVERTER = Converter("deepseek_r1", read_config, read_tensors)
