"""What a converter is: one foreign format, read as a config and tensors of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sae_lens.errors import SAELoadError
from sae_lens.loading.sources import Source

NamedTensors = Iterator[tuple[str, Tensor]]


class ReadConfig(Protocol):
    """Reads the config files of an SAE, without its weights."""

    def __call__(self, source: Source) -> dict[str, Any]:
        """A flat config dict."""
        ...


class ReadTensors(Protocol):
    """Reads the weights of an SAE whose config is known."""

    def __call__(self, source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
        """Our names and tensors, one after the other, in whatever dtype the file has."""
        ...


@dataclass(frozen=True)
class Converter:
    """One format.

    Attributes:
        name: what `conversion_func` in the registry says.
        read_config: the config, from the files' own and from names.
        read_tensors: the weights. They are cast and moved by the caller.
        read_sparsity: log10 firing frequencies `[d_sae]` where the format has them.
    """

    name: str
    read_config: ReadConfig
    read_tensors: ReadTensors
    read_sparsity: Callable[[Source], Tensor | None] | None = None


def flat_config(
    *,
    architecture: str,
    d_in: int,
    d_sae: int | None,
    hook_name: str,
    hook_layer: int,
    model_name: str | None,
    dataset_path: str | None,
    context_size: int | None,
    dtype: str = "float32",
    apply_b_dec_to_input: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A flat config with what all foreign formats have in common filled in."""
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": dtype,
        "device": "cpu",
        "model_name": model_name,
        "hook_name": hook_name,
        "hook_layer": hook_layer,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": True,
        "dataset_path": dataset_path,
        "context_size": context_size,
        "normalize_activations": "none",
        **more,
    }


def top_k(k: int) -> dict[str, Any]:
    """The config keys of a topk SAE."""
    return {
        "architecture": "topk",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": k},
    }


def layer_in(path: str, pattern: str = r"layer_(\d+)") -> int:
    """The layer number that `pattern` finds in a path; `ValueError` without one."""
    found = re.search(pattern, path)
    if found is None:
        raise ValueError(f"No layer number ({pattern}) in {path!r}, so the hook is unknown.")
    return int(found[1])


def required(config: dict[str, Any], *path: str, where: str) -> Any:
    """A value in nested dicts; `SAELoadError` naming the missing key."""
    value: Any = config
    for key in path:
        if not isinstance(value, dict) or key not in value:
            raise SAELoadError(f"The config of {where} lacks the key {'.'.join(path)!r}.")
        value = value[key]
    return value
