"""Transcoders for Qwen 3 by Michael Hanna: one safetensors file per layer, beside W&B configs."""

from __future__ import annotations

import re
from typing import Any

from sae_lens.errors import SAELoadError
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, required
from sae_lens.loading.sources import Source, Tensors, join, read_safetensors_lazily, read_yaml

WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")
# The second is how some repositories spell it.
WANDB_CONFIGS = ("wandb-config.yaml", "wanb-config.yaml")


def convert_config(
    repo_id: str, path: str, wandb_config: dict[str, Any], config: dict[str, Any] | None
) -> dict[str, Any]:
    """From the run's W&B config (each entry an object with `value`) and the repository's config.

    Raises:
        ValueError: when the layer or the model cannot be told.
    """
    found = re.search(r"_(\d+)$", path.rpartition("/")[2].removesuffix(".safetensors"))
    if found is None:
        raise ValueError(f"The file name {path!r} does not end in a layer number such as layer_3.")
    layer = int(found[1])
    where = f"{repo_id}/{WANDB_CONFIGS[0]}"
    d_model = required(wandb_config, "d_model", "value", where=where)
    return flat_config(
        architecture="transcoder",
        d_in=d_model,
        d_sae=required(wandb_config, "d_feature", "value", where=where),
        d_out=d_model,
        hook_name=f"blocks.{layer}.mlp.hook_in",
        hook_name_out=f"blocks.{layer}.hook_mlp_out",
        hook_layer=layer,
        model_name=_model_name(repo_id, config),
        dataset_path="monology/pile-uncopyrighted",
        context_size=required(wandb_config, "batch_size", "value", where=where),
        model_from_pretrained_kwargs={"fold_ln": False},
    )


def _model_name(repo_id: str, config: dict[str, Any] | None) -> str:
    if config and config.get("model_name"):
        return str(config["model_name"])
    size = re.search(r"qwen3-(\d+(?:\.\d+)?)b", repo_id.lower())
    if size is None:
        raise ValueError(
            f"{repo_id} has no config.yaml and its name holds no model such as qwen3-4b; "
            "give the model as a config override model_name."
        )
    return f"Qwen/Qwen3-{size[1]}B"


def convert_tensors(tensors: Tensors) -> NamedTensors:
    """Only the encoder is transposed. A file with further tensors is refused."""
    unknown = sorted(set(tensors) - set(WEIGHTS))
    if unknown:
        raise SAELoadError(
            f"{tensors.where} holds the tensors {unknown} besides {list(WEIGHTS)}; "
            "a transcoder without a use for them would compute something else."
        )
    yield "W_enc", tensors.take("W_enc").T
    for name in WEIGHTS[1:]:
        yield name, tensors.take(name)


def read_config(source: Source) -> dict[str, Any]:
    """From `wandb-config.yaml` and, if it is there, `config.yaml` at the repository's root."""
    folder = source.path.rpartition("/")[0]
    wandb = source.optional_file(join(folder, WANDB_CONFIGS[0])) or source.file(
        join(folder, WANDB_CONFIGS[1])
    )
    config = source.optional_file(join(folder, "config.yaml"))
    return convert_config(
        source.name, source.path, read_yaml(wandb), read_yaml(config) if config else None
    )


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From the file that the registry names."""
    yield from convert_tensors(read_safetensors_lazily(source.file(source.path), device))


CONVERTER = Converter("mwhanna_transcoder", read_config, read_tensors)
