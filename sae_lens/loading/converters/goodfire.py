"""The two SAEs by Goodfire for Llama 3.1 8B and 3.3 70B Instruct: one torch file each."""

from __future__ import annotations

from typing import Any

from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config
from sae_lens.loading.sources import Source, Tensors, read_torch_file

# repository -> file, d_in, layer, model
RELEASED = {
    "Goodfire/Llama-3.3-70B-Instruct-SAE-l50": (
        "Llama-3.3-70B-Instruct-SAE-l50.pt",
        8192,
        50,
        "meta-llama/Llama-3.3-70B-Instruct",
    ),
    "Goodfire/Llama-3.1-8B-Instruct-SAE-l19": (
        "Llama-3.1-8B-Instruct-SAE-l19.pth",
        4096,
        19,
        "meta-llama/Llama-3.1-8B-Instruct",
    ),
}


def convert_config(repo_id: str, path: str) -> dict[str, Any]:
    """What is known of the two releases; there is no config file.

    Raises:
        ValueError: for any other repository or file.
    """
    file_name, d_in, layer, model_name = RELEASED.get(repo_id, ("", 0, 0, ""))
    if path != file_name:
        known = ", ".join(f"{repo} with {entry[0]}" for repo, entry in RELEASED.items())
        raise ValueError(f"{repo_id} with {path} is not a known Goodfire SAE; known are {known}.")
    return flat_config(
        architecture="standard",
        d_in=d_in,
        d_sae=65536,
        hook_name=f"blocks.{layer}.hook_resid_post",
        hook_layer=layer,
        model_name=model_name,
        dataset_path="lmsys/lmsys-chat-1m",
        context_size=None,
    )


def convert_tensors(tensors: Tensors) -> NamedTensors:
    """Linear layers' weights are transposed."""
    yield "W_enc", tensors.take("encoder_linear.weight").T
    yield "W_dec", tensors.take("decoder_linear.weight").T
    yield "b_enc", tensors.take("encoder_linear.bias")
    yield "b_dec", tensors.take("decoder_linear.bias")


def read_config(source: Source) -> dict[str, Any]:
    """From names; no file is read."""
    return convert_config(source.name, source.path)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From the file that the registry names."""
    yield from convert_tensors(read_torch_file(source.file(source.path)))


CONVERTER = Converter("goodfire", read_config, read_tensors)
