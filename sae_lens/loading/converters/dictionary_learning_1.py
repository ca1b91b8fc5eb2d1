"""The dictionary_learning library (Marks, Karvonen, Mueller): `config.json` and `ae.pt`.

Its classes become ours like this:

    AutoEncoder                           standard
    AutoEncoderNew                        standard, b_dec not subtracted before encoding
    GatedAutoEncoder                      gated
    AutoEncoderTopK                       topk
    BatchTopKSAE, MatryoshkaBatchTopKSAE  jumprelu with the stored threshold, as they run themselves
    JumpReluAutoEncoder                   jumprelu, b_dec not subtracted before encoding
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sae_lens.errors import SAELoadError
from sae_lens.loading.converters.base import Converter, NamedTensors, flat_config, required, top_k
from sae_lens.loading.sources import Source, Tensors, join, read_json, read_torch_file

ARCHITECTURES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
}
WITHOUT_B_DEC_AT_INPUT = ("AutoEncoderNew", "JumpReluAutoEncoder")
# The library's own default length of a sequence, for configs without a buffer.
DEFAULT_CONTEXT_SIZE = 128


def convert_config(config: dict[str, Any], where: str = "the SAE") -> dict[str, Any]:
    """From `trainer` and `buffer` of `config.json`.

    Raises:
        SAELoadError: for a missing key or an unknown `dict_class`.
    """
    trainer = required(config, "trainer", where=where)
    dict_class = trainer.get("dict_class", "AutoEncoder")
    if dict_class not in ARCHITECTURES:
        raise SAELoadError(
            f"{where} is a {dict_class!r}; known classes of this library are "
            f"{', '.join(ARCHITECTURES)}."
        )
    layer = required(trainer, "layer", where=where)
    architecture = ARCHITECTURES[dict_class]
    more = top_k(required(trainer, "k", where=where)) if architecture == "topk" else {}
    cfg = flat_config(
        architecture=architecture,
        d_in=required(trainer, "activation_dim", where=where),
        d_sae=required(trainer, "dict_size", where=where),
        hook_name=f"blocks.{layer}.hook_resid_post",
        hook_layer=layer,
        model_name=required(trainer, "lm_name", where=where).split("/")[-1],
        dataset_path="monology/pile-uncopyrighted",
        context_size=(config.get("buffer") or {}).get("ctx_len", DEFAULT_CONTEXT_SIZE),
        apply_b_dec_to_input=dict_class not in WITHOUT_B_DEC_AT_INPUT,
    )
    return {**cfg, **more}


def convert_tensors(tensors: Tensors, architecture: str, d_sae: int) -> NamedTensors:
    """Our names; weights of linear layers are transposed, a single threshold is repeated.

    Everything that the architecture has no use for (`k`, `group_sizes`, the threshold that a topk
    SAE keeps for inference) is ignored.
    """
    yield "W_enc", _matrix(tensors, "W_enc", "encoder.weight")
    yield "W_dec", _matrix(tensors, "W_dec", "decoder.weight")
    yield "b_dec", tensors.take("b_dec", "bias", "decoder_bias", "decoder.bias")
    if architecture == "gated":
        for ours, theirs in (("b_mag", "mag_bias"), ("b_gate", "gate_bias"), ("r_mag", "r_mag")):
            yield ours, tensors.take(theirs)
        return
    yield "b_enc", tensors.take("b_enc", "encoder.bias")
    if architecture == "jumprelu":
        threshold = tensors.take("threshold")
        yield "threshold", threshold.expand(d_sae) if threshold.dim() == 0 else threshold


def _matrix(tensors: Tensors, direct: str, linear: str) -> Tensor:
    return tensors.take(direct) if direct in tensors else tensors.take(linear).T


def read_config(source: Source) -> dict[str, Any]:
    """From `config.json`."""
    name = join(source.path, "config.json")
    return convert_config(read_json(source.file(name)), f"{source.name}/{name}")


def read_tensors(source: Source, cfg: dict[str, Any], device: str) -> NamedTensors:
    """From `ae.pt`."""
    tensors = read_torch_file(source.file(join(source.path, "ae.pt")))
    yield from convert_tensors(tensors, cfg["architecture"], cfg["d_sae"])


CONVERTER = Converter("dictionary_learning_1", read_config, read_tensors)
