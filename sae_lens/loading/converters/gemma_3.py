"""Gemma Scope 2: JumpReLU SAEs and (skip) transcoders for Gemma 3 in `params.safetensors`.

`config.json` may be missing; then names say what it would have said. The widths come from the
shape of `w_enc`, of which only the file's header is read. A layer of a cross-layer transcoder
(CLT), whose decoder has one matrix per target layer, is read as a transcoder with their sum.

Activations of the attention-output SAEs are those of `hook_z`, which TransformerLens splits by
head: our SAE accepts them split and flattened.
"""

from __future__ import annotations

from typing import Any

from sae_lens.errors import SAELoadError
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, layer_in
from sae_lens.loading.sources import Source, Tensors, join, read_json, read_safetensors_lazily

Shape = tuple[int, ...]


def is_clt(path: str) -> bool:
    """Whether the SAE is one file in a folder of cross-layer transcoders."""
    return "clt" in path.rpartition("/")[0]


def weights_file(path: str) -> str:
    """The file below the repository's root that holds the weights."""
    return f"{path}.safetensors" if is_clt(path) else join(path, "params.safetensors")


def names_of_hooks(path: str, layer: int) -> dict[str, str | None]:
    """Hook names in TransformerLens and Hugging Face terms, by the kind that the path names."""
    block, module = f"blocks.{layer}", f"model.layers.{layer}"
    if "transcoder" in path or "clt" in path:
        return {
            "hook_name": f"{block}.hook_mlp_in",
            "hook_name_out": f"{block}.hook_mlp_out",
            "hf_hook_name": f"{module}.pre_feedforward_layernorm.output",
            "hf_hook_name_out": f"{module}.post_feedforward_layernorm.output",
        }
    kinds = {
        "resid_post": ("hook_resid_post", "output"),
        "attn_out": ("attn.hook_z", "self_attn.o_proj.input"),
        "mlp_out": ("hook_mlp_out", "post_feedforward_layernorm.output"),
    }
    for kind, (hook, hf_hook) in kinds.items():
        if kind in path:
            return {"hook_name": f"{block}.{hook}", "hf_hook_name": f"{module}.{hf_hook}"}
    raise ValueError(
        f"The path {path!r} names none of transcoder, clt, {', '.join(kinds)}; the hook is unknown."
    )


def model_name_of(model_name: str) -> str:
    """The hub's id of the language model."""
    name = model_name if "google" in model_name else f"google/{model_name}"
    name = name.replace("-v3", "-3")
    return name.replace("-pt", "") if "270m" in name else name


def convert_config(
    repo_id: str, path: str, config: dict[str, Any] | None, shapes: dict[str, Shape]
) -> dict[str, Any]:
    """From names, the file's own config if there is one, and tensor shapes."""
    config = config or {}
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise SAELoadError(
            f"{repo_id}/{path} has the architecture {architecture!r}; "
            "of this format only 'jump_relu' is known."
        )
    layer = layer_in(path)
    hooks: dict[str, Any] = dict(names_of_hooks(path, layer))
    for ours, theirs in (
        ("hf_hook_name", "hf_hook_point_in"),
        ("hf_hook_name_out", "hf_hook_point_out"),
    ):
        if config.get(theirs) is not None:
            hooks[ours] = config[theirs]
    if "w_enc" not in shapes or "w_dec" not in shapes:
        raise SAELoadError(
            f"{repo_id}/{weights_file(path)} has no w_enc and w_dec; it holds {sorted(shapes)}."
        )
    d_in, d_sae = shapes["w_enc"]
    more: dict[str, Any] = {}
    ours = "jumprelu"
    if "transcoder" in path or "clt" in path:
        affine = config.get("affine_connection")
        affine = "affine" in path if affine is None else bool(affine)
        ours = "jumprelu_skip_transcoder" if affine else "jumprelu_transcoder"
        more["d_out"] = shapes["w_dec"][-1]
    if hooks["hook_name"] == f"blocks.{layer}.attn.hook_z":
        more["reshape_activations"] = "hook_z"
    else:
        more["reshape_activations"] = "none"
    return flat_config(
        architecture=ours,
        d_in=d_in,
        d_sae=d_sae,
        hook_layer=layer,
        model_name=model_name_of(
            config.get("model_name") or repo_id.replace("gemma-scope-2", "gemma-3")
        ),
        dataset_path="monology/pile-uncopyrighted",
        context_size=1024,
        **more,
        **hooks,
    )


def convert_tensors(tensors: Tensors, architecture: str) -> NamedTensors:
    """Our names; the affine skip connection is transposed, a CLT's decoder summed."""
    yield "W_enc", tensors.take("w_enc")
    decoder = tensors.take("w_dec")
    yield "W_dec", decoder.sum(dim=1) if decoder.dim() == 3 else decoder
    for name in ("b_enc", "b_dec", "threshold"):
        yield name, tensors.take(name)
    if architecture == "jumprelu_skip_transcoder":
        yield "W_skip", tensors.take("affine_skip_connection").T


def read_config(source: Source) -> dict[str, Any]:
    """From `config.json` if there is one, names, and the header of the weights."""
    folder = source.path.rpartition("/")[0] if is_clt(source.path) else source.path
    config = source.optional_file(join(folder, "config.json"))
    shapes = source.shapes(weights_file(source.path))
    return convert_config(source.name, source.path, read_json(config) if config else None, shapes)


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From `params.safetensors`."""
    tensors = read_safetensors_lazily(source.file(weights_file(source.path)), device)
    yield from convert_tensors(tensors, cfg["architecture"])


CONVERTER = Converter("gemma_3", read_config, read_tensors)
