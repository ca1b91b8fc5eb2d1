"""One layer of the cross-layer transcoders by mntss, read as an ordinary transcoder.

The path is the layer's number. Its decoder writes to several layers; their sum is used, so features
are exact but reconstructions are not those of the whole transcoder.
"""

from __future__ import annotations

import warnings
from typing import Any

from sae_lens.errors import SAELoadError
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, required
from sae_lens.loading.sources import Source, Tensors, read_safetensors_lazily, read_yaml


def layer_number(path: str) -> int:
    """The layer that a path such as "7" names."""
    if not str(path).isdigit():
        raise ValueError(f"The path {path!r} of a cross-layer transcoder must be a layer number.")
    return int(path)


def convert_config(
    layer: int, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], where: str = "the CLT"
) -> dict[str, Any]:
    """From the repository's `config.yaml` and the lengths of the layer's biases."""
    for name in (f"b_enc_{layer}", f"b_dec_{layer}"):
        if name not in shapes:
            raise SAELoadError(f"{where} has no tensor {name!r}; it holds {sorted(shapes)}.")
    (d_sae,), (d_in,) = shapes[f"b_enc_{layer}"], shapes[f"b_dec_{layer}"]
    hook_in = required(config, "feature_input_hook", where=where)
    hook_out = required(config, "feature_output_hook", where=where)
    return flat_config(
        architecture="transcoder",
        d_in=d_in,
        d_sae=d_sae,
        d_out=d_in,
        hook_name=f"blocks.{layer}.{hook_in}",
        hook_name_out=f"blocks.{layer}.{hook_out}",
        hook_layer=layer,
        model_name=required(config, "model_name", where=where),
        dataset_path=None,
        context_size=None,
        model_from_pretrained_kwargs={"fold_ln": False},
    )


def convert_tensors(layer: int, encoder: Tensors, decoder: Tensors) -> NamedTensors:
    """The encoder is transposed, the decoder summed over its target layers."""
    yield "W_enc", encoder.take(f"W_enc_{layer}").T
    yield "b_enc", encoder.take(f"b_enc_{layer}")
    yield "b_dec", encoder.take(f"b_dec_{layer}")
    yield "W_dec", decoder.take(f"W_dec_{layer}").sum(dim=1)


def read_config(source: Source) -> dict[str, Any]:
    """From `config.yaml` and the header of the encoder's file."""
    layer = layer_number(source.path)
    config = read_yaml(source.file("config.yaml"))
    return convert_config(layer, config, source.shapes(f"W_enc_{layer}.safetensors"), source.name)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From the layer's encoder and decoder files."""
    layer = layer_number(source.path)
    warnings.warn(
        f"{source.name} holds cross-layer transcoders. Layer {layer} is read as a transcoder of "
        "its own: use its feature activations, not its reconstructions.",
        UserWarning,
        stacklevel=2,
    )
    encoder = read_safetensors_lazily(source.file(f"W_enc_{layer}.safetensors"), device)
    decoder = read_safetensors_lazily(source.file(f"W_dec_{layer}.safetensors"), device)
    yield from convert_tensors(layer, encoder, decoder)


CONVERTER = Converter("mntss_clt_layer_transcoder", read_config, read_tensors)
