"""Gemma Scope transcoders: `params.npz`, from the MLP's normalised input to its output."""

from __future__ import annotations

import re
from typing import Any

from sae_lens.errors import SAELoadError
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config
from sae_lens.loading.converters.gemma_2 import MODEL_WIDTHS, model_size, width_in
from sae_lens.loading.sources import Source, Tensors, join, read_npz

# Several spellings are in circulation; they are compared in lower case.
SPELLINGS = {
    "W_enc": ("w_enc", "wenc", "w_e"),
    "W_dec": ("w_dec", "wdec", "w_d"),
    "b_enc": ("b_enc", "benc", "b_e"),
    "b_dec": ("b_dec", "bdec", "b_d"),
    "threshold": ("threshold",),
}


def transcoder_width(path: str) -> int:
    """Number of features from `width_16k` in a path, 1024 times the number for unlisted ones."""
    width = None if re.search(r"width_(32|131)k", path) else width_in(path)
    thousands = re.search(r"width_(\d+)k", path)
    if width is None and thousands is None:
        raise ValueError(f"No width (such as width_16k) in {path!r}.")
    return width if width is not None else int(thousands[1]) * 1024  # type: ignore[index]


def convert_config(repo_id: str, path: str) -> dict[str, Any]:
    """From the names of repository and folder alone."""
    size = model_size(repo_id)
    found = re.search(r"layer_(\d+)", path) or re.search(r"layer_(\d+)", repo_id)
    if found is None:
        raise ValueError(f"No layer number in {path!r} or {repo_id!r}, so the hook is unknown.")
    layer = int(found[1])
    return flat_config(
        architecture="jumprelu_transcoder",
        d_in=MODEL_WIDTHS[size],
        d_sae=transcoder_width(path),
        d_out=MODEL_WIDTHS[size],
        hook_name=f"blocks.{layer}.ln2.hook_normalized",
        hook_name_out=f"blocks.{layer}.hook_mlp_out",
        hook_layer=layer,
        model_name=f"gemma-2-{size}",
        dataset_path="monology/pile-uncopyrighted",
        context_size=1024,
    )


def convert_tensors(tensors: Tensors) -> NamedTensors:
    """Our names for whichever spelling is there; nothing is transposed."""
    by_lower_case = {name.lower(): name for name in tensors}
    for ours, spellings in SPELLINGS.items():
        name = next((by_lower_case[s] for s in spellings if s in by_lower_case), None)
        if name is None:
            raise SAELoadError(
                f"{tensors.where} has no {ours} (looked for {', '.join(spellings)}); "
                f"it holds {', '.join(sorted(tensors))}."
            )
        yield ours, tensors.take(name).float()


def read_config(source: Source) -> dict[str, Any]:
    """From names; no file is read."""
    return convert_config(source.name, source.path)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From `params.npz`."""
    yield from convert_tensors(read_npz(source.file(join(source.path, "params.npz"))))


CONVERTER = Converter("gemma_2_transcoder", read_config, read_tensors)
