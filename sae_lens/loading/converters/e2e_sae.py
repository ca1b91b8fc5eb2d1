"""The files of Apollo Research's e2e_sae library (Braun et al. 2024).

A checkpoint holds one SAE per hook under `saes.<hook with dashes>.`: `encoder.0.weight`,
`encoder.0.bias`, `decoder.weight` and `decoder.bias`. What it computes, with the decoder's columns
brought to unit norm on every pass:

    c = relu(x W_enc^T + b_enc),  x' = c normalise(W_dec)^T + b_dec
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from sae_lens.errors import SAELoadError
from sae_lens.hook_names import layer_of
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config
from sae_lens.loading.sources import Source, Tensors, read_torch_file


def split_path(path: str) -> tuple[str, str]:
    """(file, hook) from `folder/file.pt#blocks.6.hook_resid_pre`; the hook may be left out."""
    file, _, hook = path.partition("#")
    return file, hook


def prefix_of(names: list[str], hook: str, where: str = "the checkpoint") -> str:
    """What the chosen SAE's tensors are called before `encoder.0.weight`."""
    prefixes = [n.removesuffix("encoder.0.weight") for n in names if n.endswith("encoder.0.weight")]
    chosen = [p for p in prefixes if not hook or hook.replace(".", "-") in p.replace(".", "-")]
    if len(chosen) != 1:
        raise SAELoadError(
            f"{where} holds {len(prefixes)} SAEs ({', '.join(prefixes)}), of which {len(chosen)} "
            f"match {hook!r}. Choose one by adding '#' and its hook to the path."
        )
    return chosen[0]


def hook_in(prefix: str) -> str:
    """`saes.blocks-6-hook_resid_pre.` is `blocks.6.hook_resid_pre`."""
    return prefix.strip(".").split(".")[-1].replace("-", ".") if prefix else ""


def convert_config(hook_name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """From the hook and the shape `[d_sae, d_in]` of the encoder."""
    d_sae, d_in = shape
    return flat_config(
        architecture="standard",
        d_in=d_in,
        d_sae=d_sae,
        hook_name=hook_name,
        hook_layer=layer_of(hook_name),
        model_name="gpt2-small",
        dataset_path="apollo-research/Skylion007-openwebtext-tokenizer-gpt2",
        context_size=1024,
    )


def convert_tensors(tensors: Tensors, prefix: str = "") -> NamedTensors:
    """Our names; the decoder's directions get unit norm."""
    yield "W_enc", tensors.take(f"{prefix}encoder.0.weight").T
    yield "b_enc", tensors.take(f"{prefix}encoder.0.bias")
    yield "W_dec", _unit_directions(tensors.take(f"{prefix}decoder.weight"))
    yield "b_dec", tensors.take(f"{prefix}decoder.bias")


def _unit_directions(decoder: Tensor) -> Tensor:
    return normalize(decoder.float(), dim=0).T


def _open(source: Source) -> tuple[Tensors, str]:
    file, hook = split_path(source.path)
    tensors = read_torch_file(source.file(file))
    return tensors, prefix_of(list(tensors), hook, f"{source.name}/{file}")


def read_config(source: Source) -> dict[str, Any]:
    """From the names and shapes in the checkpoint."""
    tensors, prefix = _open(source)
    hook = split_path(source.path)[1] or hook_in(prefix)
    return convert_config(hook, tuple(tensors[f"{prefix}encoder.0.weight"].shape))


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From the checkpoint."""
    tensors, prefix = _open(source)
    yield from convert_tensors(tensors, prefix)


CONVERTER = Converter("e2e_sae", read_config, read_tensors)
