"""Attention-output SAEs for GPT-2 small (Kissane, Krzyzanowski et al. 2024).

A `.pt` file with our tensor names and shapes, and beside it `<name>_cfg.json`. The activations are
`hook_z` with the heads flattened; the decoder bias is subtracted before encoding.
"""

from __future__ import annotations

from typing import Any

from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, required
from sae_lens.loading.sources import Source, Tensors, read_json, read_torch_file

WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")


def convert_config(config: dict[str, Any], where: str = "the SAE") -> dict[str, Any]:
    """From `act_size`, `dict_size`, `act_name` and `layer`."""
    return flat_config(
        architecture="standard",
        d_in=required(config, "act_size", where=where),
        d_sae=required(config, "dict_size", where=where),
        hook_name=required(config, "act_name", where=where),
        hook_layer=required(config, "layer", where=where),
        model_name="gpt2-small",
        dataset_path="Skylion007/openwebtext",
        context_size=128,
        apply_b_dec_to_input=True,
        reshape_activations="hook_z",
    )


def convert_tensors(tensors: Tensors) -> NamedTensors:
    """The four tensors unchanged."""
    for name in WEIGHTS:
        yield name, tensors.take(name)


def read_config(source: Source) -> dict[str, Any]:
    """From `<name>_cfg.json` beside the weights."""
    name = source.path.removesuffix(".pt") + "_cfg.json"
    return convert_config(read_json(source.file(name)), f"{source.name}/{name}")


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From the `.pt` file itself."""
    yield from convert_tensors(read_torch_file(source.file(source.path)))


CONVERTER = Converter("connor_rob_hook_z", read_config, read_tensors)
