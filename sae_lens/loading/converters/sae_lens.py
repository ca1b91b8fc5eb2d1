"""Our own format: `cfg.json`, `sae_weights.safetensors` and, where kept, `sparsity.safetensors`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.loading.converters.base import Converter, NamedTensors
from sae_lens.loading.disk import complete_config, read_config_file
from sae_lens.loading.sources import Source, join, read_safetensors_lazily


def read_config(source: Source) -> dict[str, Any]:
    """The file's config under today's keys."""
    return complete_config(read_config_file(source.file(join(source.path, SAE_CFG_FILENAME))))


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """The tensors as they are."""
    tensors = read_safetensors_lazily(source.file(join(source.path, SAE_WEIGHTS_FILENAME)), device)
    for name in list(tensors):
        yield name, tensors.take(name)


def read_sparsity(source: Source) -> Tensor | None:
    """log10 firing frequencies `[d_sae]`, or None for an SAE published without them."""
    path = source.optional_file(join(source.path, SPARSITY_FILENAME))
    return None if path is None else read_safetensors_lazily(path).take("sparsity")


CONVERTER = Converter("sae_lens", read_config, read_tensors, read_sparsity)
