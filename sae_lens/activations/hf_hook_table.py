"""Which tensor of a Hugging Face model is which TransformerLens activation, by model family.

A row names a module inside a layer and the side of it on which the tensor is found. The residual
stream before, between and after the two halves of a layer, what each half adds to it, the heads'
outputs before they are mixed (`attn.hook_z`) and the MLP's hidden activations are there for every
family. What TransformerLens computes differently (attention patterns, scaled weights, normalised
residuals) is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Place:
    """Where an activation is found.

    Attributes:
        module: path inside the layer, "" for the layer itself.
        side: whether it is the module's input or its output.
        is_between: it is the residual stream after attention, which the MLP's norm reads, but which
            also goes on past the MLP: a replacement must act on both.
        has_heads: the last axis is all heads side by side; the hook shows them as an axis.
    """

    module: str
    side: Literal["input", "output"]
    is_between: bool = False
    has_heads: bool = False


@dataclass(frozen=True)
class Family:
    """Where the activations of a family of models are.

    Attributes:
        layers: name of the list of layers in the decoder.
        in_layer: places by TransformerLens name, without `blocks.N.`.
        final_norm: name of the norm behind the last layer.
        embedding: name of the token embedding there, where its output is `hook_embed`; None where
            that is what enters the first layer.
        normalises_branches: what attention and MLP put out is normalised before it is added to the
            residual stream.
    """

    layers: str
    in_layer: dict[str, Place]
    final_norm: str
    embedding: str | None = None
    normalises_branches: bool = False


_BORDERS = {
    "hook_resid_pre": Place("", "input"),
    "hook_resid_post": Place("", "output"),
}
_GATED_MLP = {
    "mlp.hook_pre": Place("mlp.gate_proj", "output"),
    "mlp.hook_pre_linear": Place("mlp.up_proj", "output"),
    "mlp.hook_post": Place("mlp.down_proj", "input"),
}

_GPT2 = Family(
    layers="h",
    final_norm="ln_f",
    embedding="wte",
    in_layer={
        **_BORDERS,
        "hook_resid_mid": Place("ln_2", "input", is_between=True),
        "hook_attn_out": Place("attn", "output"),
        "hook_mlp_out": Place("mlp", "output"),
        "attn.hook_z": Place("attn.c_proj", "input", has_heads=True),
        "mlp.hook_pre": Place("mlp.c_fc", "output"),
        "mlp.hook_post": Place("mlp.c_proj", "input"),
    },
)
# Attention and MLP read the same residual stream side by side: there is nothing between them.
_NEOX = Family(
    layers="layers",
    final_norm="final_layer_norm",
    in_layer={
        **_BORDERS,
        "hook_attn_out": Place("attention", "output"),
        "hook_mlp_out": Place("mlp", "output"),
        "attn.hook_z": Place("attention.dense", "input", has_heads=True),
        "mlp.hook_pre": Place("mlp.dense_h_to_4h", "output"),
        "mlp.hook_post": Place("mlp.dense_4h_to_h", "input"),
    },
)
_LLAMA = Family(
    layers="layers",
    final_norm="norm",
    in_layer={
        **_BORDERS,
        **_GATED_MLP,
        "hook_resid_mid": Place("post_attention_layernorm", "input", is_between=True),
        "hook_attn_out": Place("self_attn", "output"),
        "hook_mlp_out": Place("mlp", "output"),
        "attn.hook_z": Place("self_attn.o_proj", "input", has_heads=True),
    },
)
_GEMMA_2 = Family(
    layers="layers",
    final_norm="norm",
    normalises_branches=True,
    in_layer={
        **_BORDERS,
        **_GATED_MLP,
        "hook_resid_mid": Place("pre_feedforward_layernorm", "input", is_between=True),
        "hook_attn_out": Place("post_attention_layernorm", "output"),
        "hook_mlp_out": Place("post_feedforward_layernorm", "output"),
        "attn.hook_z": Place("self_attn.o_proj", "input", has_heads=True),
    },
)

# By the `model_type` of a Hugging Face config.
_FAMILIES = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_2,
}


def family_of(config: Any) -> Family | None:
    """The family of a model by its Hugging Face config; None for one that is not in the table."""
    model_type = getattr(config, "model_type", None)
    if model_type == "gpt_neox" and not config.use_parallel_residual:
        return None
    return _FAMILIES.get(model_type) if isinstance(model_type, str) else None


def attention_it_needs(config: Any) -> str | None:
    """Which attention implementation gives the right values, where the default one does not.

    Scaled-dot-product attention in transformers leaves out the soft cap of attention scores (Gemma
    2) and the unusual scales that a GPT-2 config may ask for.
    """
    caps_scores = getattr(config, "attn_logit_softcapping", None) is not None
    other_scale = getattr(config, "model_type", None) == "gpt2" and (
        config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights
    )
    return "eager" if caps_scores or other_scale else None
