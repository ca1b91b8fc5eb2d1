"""The sparsify library (EleutherAI): top-k SAEs as `cfg.json` and `sae.safetensors`.

What it computes: the k largest of relu((x - b_dec) W_enc^T + b_enc), where b_dec is subtracted
unless the SAE transcodes. `W_dec` is stored as `[latents, d_in]`; other tools have written its
transpose under the same name, so the shape decides. `num_latents: 0` means d_in * expansion_factor.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from sae_lens.constants import SAE_CFG_FILENAME, SPARSIFY_WEIGHTS_FILENAME
from sae_lens.errors import SAELoadError
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, required, top_k
from sae_lens.loading.sources import Source, Tensors, join, read_json, read_safetensors_lazily


def hook_of(folder: str) -> tuple[str, int]:
    """(hook name, layer) from a folder such as `layers.5`, `layers.5.mlp` or `embed_tokens`.

    sparsify hooks the outputs of modules: of a whole layer, of its MLP or of its attention.

    Raises:
        ValueError: for any other name.
    """
    if folder == "embed_tokens":
        return "hook_embed", 0
    found = re.search(r"layers[._](\d+)(.*)", folder)
    if found is None:
        raise ValueError(
            f"No layer in the folder name {folder!r}; expected something like layers.5."
        )
    layer, module = int(found[1]), found[2]
    if "mlp" in module:
        return f"blocks.{layer}.hook_mlp_out", layer
    if "attn" in module or "attention" in module:
        return f"blocks.{layer}.hook_attn_out", layer
    return f"blocks.{layer}.hook_resid_post", layer


def convert_config(
    folder: str,
    config: dict[str, Any],
    run_config: dict[str, Any] | None = None,
    parent: str = "",
    where: str = "the SAE",
) -> dict[str, Any]:
    """From `cfg.json`, the run's `config.json` and the folder's name.

    Raises:
        SAELoadError: for options whose computation we do not have.
    """
    run_config = run_config or {}
    if config.get("activation", "topk") != "topk":
        raise SAELoadError(
            f"{where} uses the activation {config['activation']!r}; only 'topk' can be loaded."
        )
    if config.get("skip_connection"):
        raise SAELoadError(
            f"{where} has a skip connection; there is no top-k transcoder to load it into."
        )
    hook_name, layer = hook_of(folder)
    d_in = required(config, "d_in", where=where)
    d_sae = config.get("num_latents") or d_in * required(config, "expansion_factor", where=where)
    cfg = flat_config(
        architecture="topk",
        d_in=d_in,
        d_sae=int(d_sae),
        dtype="bfloat16",
        hook_name=hook_name,
        hook_layer=layer,
        model_name=run_config.get("model", parent),
        dataset_path=run_config.get("dataset", "togethercomputer/RedPajama-Data-1T-Sample"),
        context_size=run_config.get("ctx_len", 2048),
        apply_b_dec_to_input=not config.get("transcode", False),
    )
    return {**cfg, **top_k(required(config, "k", where=where))}


def convert_tensors(tensors: Tensors, d_in: int, d_sae: int) -> NamedTensors:
    """Our names, each matrix in our orientation, zeros for missing biases."""
    yield "W_enc", _oriented(tensors, ("W_enc", "encoder.weight"), (d_in, d_sae))
    yield "W_dec", _oriented(tensors, ("W_dec", "decoder.weight"), (d_sae, d_in))
    yield "b_enc", _bias(tensors, ("b_enc", "encoder.bias"), d_sae)
    yield "b_dec", _bias(tensors, ("b_dec", "decoder.bias"), d_in)


def _oriented(tensors: Tensors, names: tuple[str, str], shape: tuple[int, int]) -> Tensor:
    direct = names[0] in tensors
    tensor = tensors.take(*names)
    square = shape[0] == shape[1]
    # A square matrix does not show its orientation; then the name does.
    if tuple(tensor.shape) == shape and not (square and not direct):
        return tensor
    if tuple(tensor.shape) == shape[::-1]:
        return tensor.T
    raise SAELoadError(
        f"{tensors.where}: {' or '.join(names)} has the shape {list(tensor.shape)}; "
        f"the config asks for {list(shape)} or its transpose."
    )


def _bias(tensors: Tensors, names: tuple[str, str], length: int) -> Tensor:
    return tensors.take(*names) if any(name in tensors for name in names) else torch.zeros(length)


def read_config(source: Source) -> dict[str, Any]:
    """From `cfg.json` and, one level up, the run's `config.json` if there is one."""
    parent, _, folder = source.path.rpartition("/")
    config = read_json(source.file(join(source.path, SAE_CFG_FILENAME)))
    run_config = source.optional_file(join(parent, "config.json"))
    return convert_config(
        folder,
        config,
        read_json(run_config) if run_config else None,
        (parent or source.name).rpartition("/")[2],
        f"{source.name}/{source.path}",
    )


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From `sae.safetensors`."""
    path = source.file(join(source.path, SPARSIFY_WEIGHTS_FILENAME))
    yield from convert_tensors(read_safetensors_lazily(path, device), cfg["d_in"], cfg["d_sae"])


CONVERTER = Converter("sparsify", read_config, read_tensors)
