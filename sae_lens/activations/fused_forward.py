"""A faster way through the blocks of a `HookedTransformer` where nothing inside them is looked at.

TransformerLens computes queries, keys and values in three products, forms the attention pattern so
that hooks can see it, and normalises and applies GELU in several passes. Here each is one operation
of torch: one product for all three, `scaled_dot_product_attention`, `layer_norm`, `gelu`. The
values are those of TransformerLens up to the rounding of reordered sums (1e-5 in float32).

A block is run so if all its parts are ones that are known here, no hook is on any of them, and what
is wanted from it is one of `_SERVED`; every other block runs as it is. So the values at a hook do
not depend on which other hooks are read in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.components import (
    MLP,
    Attention,
    GatedMLP,
    GroupedQueryAttention,
    LayerNorm,
    LayerNormPre,
    RMSNorm,
    RMSNormPre,
    TransformerBlock,
)
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.activation_functions import gelu_new

from sae_lens.transformer_lens_versions import LAYER_NORM_HOOK_IS_BEFORE_WEIGHT

_KNOWN_PARTS = frozenset(
    {
        TransformerBlock,
        Attention,
        GroupedQueryAttention,
        MLP,
        GatedMLP,
        LayerNorm,
        LayerNormPre,
        RMSNorm,
        RMSNormPre,
        HookPoint,
        nn.Identity,
    }
)
_KNOWN_POSITIONS = ("standard", "rotary")
# Settings that change what a block computes, in ways that are not here. Some exist in 3.x only.
_UNKNOWN_SETTINGS = (
    "use_attn_in",
    "use_split_qkv_input",
    "use_hook_mlp_in",
    "use_attn_result",
    "load_in_4bit",
    "ungroup_grouped_query_attention",
    "clip_qkv",
    "use_logn_attn",
    "use_attention_sinks",
)
# Activations inside a block that exist here as well.
_SERVED = frozenset(
    {
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
        "hook_attn_out",
        "hook_mlp_out",
        "attn.hook_q",
        "attn.hook_k",
        "attn.hook_v",
        "attn.hook_z",
        "mlp.hook_pre",
        "mlp.hook_post",
        "ln1.hook_normalized",
        "ln2.hook_normalized",
        "ln1_post.hook_normalized",
        "ln2_post.hook_normalized",
    }
)


def is_known_model(model: Any) -> bool:
    """Whether this is a TransformerLens model with the forward pass that stands here."""
    return (
        isinstance(model, HookedTransformer)
        and type(model).forward is HookedTransformer.forward
        and type(model).input_to_embed is HookedTransformer.input_to_embed
    )


def can_run_fused(model: Any) -> bool:
    """Whether `run_fused` may stand for the model's own forward pass over tokens.

    Not when the model is a subclass with another forward pass, is spread over devices, pads on the
    left (which needs a mask), when somebody hooked the model as a whole, or when a gradient is
    recorded.
    """
    return (
        is_known_model(model)
        and not _has_hooks(model)
        and not torch.is_grad_enabled()
        and not nn.modules.module._has_any_global_hook()
        and model.cfg.positional_embedding_type in _KNOWN_POSITIONS
        and (model.cfg.n_devices or 1) == 1
        and getattr(model.tokenizer, "padding_side", "right") == "right"
    )


def fusable_blocks(model: HookedTransformer) -> list[bool]:
    """Which blocks consist of known parts alone, with no hook on any of them."""
    return [_is_fusable(block) for block in model.blocks]


def run_fused(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    hook_names: Collection[str],
    is_fusable: list[bool],
    block_function: Callable[[Any, Tensor], Tensor] | None = None,
) -> None:
    """Run the model over tokens; hook points on the way get the values they always get.

    Args:
        model: one that `can_run_fused`.
        tokens: token ids.
        hook_names: hook points that must be called.
        is_fusable: the result of `fusable_blocks`, from before hooks of one's own were added.
        block_function: a compiled `run_block`, for blocks without a hook that is asked for.
    """
    residual = model.input_to_embed(tokens, prepend_bos=False)[0]
    n_pos = tokens.shape[1]
    blocks: Any = model.blocks
    for index, block in enumerate(blocks):
        prefix = f"blocks.{index}."
        wanted = {name[len(prefix) :] for name in hook_names if name.startswith(prefix)}
        if is_fusable[index] and wanted <= _SERVED and n_pos <= model.cfg.n_ctx:
            function = run_block if wanted or block_function is None else block_function
            residual = function(block, residual)
        else:
            residual = block(residual)
    model(residual, start_at_layer=model.cfg.n_layers)


def _is_fusable(block: Any) -> bool:
    cfg = getattr(block, "cfg", None)
    return (
        type(block) is TransformerBlock
        and cfg is not None
        and cfg.positional_embedding_type in _KNOWN_POSITIONS
        and cfg.attention_dir == "causal"
        and not cfg.attn_scores_soft_cap > 0
        and not any(getattr(cfg, setting, None) for setting in _UNKNOWN_SETTINGS)
        and (_norms_each_head(cfg) or getattr(block.attn, "q_norm", None) is None)
        and all(
            type(part) in _KNOWN_PARTS and not _has_hooks(part) and "forward" not in vars(part)
            for part in block.modules()
        )
    )


def _norms_each_head(cfg: Any) -> bool:
    """Whether q and k are normalised; other models (OLMo 2) normalise all their heads at once."""
    return getattr(cfg, "use_qk_norm", False)  # missing in older TransformerLens


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def run_block(
    block: Any, resid_pre: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """A block of known parts, from the residual stream before it to that behind it."""
    cfg = block.cfg
    resid_pre = block.hook_resid_pre(resid_pre)
    attn_out = _attention(block.attn, _normalised(block.ln1, resid_pre))
    if cfg.use_normalization_before_and_after:
        attn_out = _normalised(block.ln1_post, attn_out)
    attn_out = block.hook_attn_out(attn_out)
    if cfg.attn_only:
        return block.hook_resid_post(resid_pre + attn_out)
    if cfg.parallel_attn_mlp:
        mlp_out = _mlp(block, _normalised(block.ln2, resid_pre))
        return block.hook_resid_post(resid_pre + attn_out + mlp_out)
    resid_mid = block.hook_resid_mid(resid_pre + attn_out)
    mlp_out = _mlp(block, _normalised(block.ln2, resid_mid))
    return block.hook_resid_post(resid_mid + mlp_out)


def _attention(
    attn: Any, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    cfg = attn.cfg
    own = "_" if type(attn) is GroupedQueryAttention else ""  # key and value weights not repeated
    weights = [attn.W_Q, getattr(attn, f"{own}W_K"), getattr(attn, f"{own}W_V")]
    biases = [attn.b_Q, getattr(attn, f"{own}b_K"), getattr(attn, f"{own}b_V")]
    # Put side by side at each call: a copy of one layer's weights, small beside the product.
    weight = torch.cat([w.transpose(0, 1) for w in weights], dim=1).flatten(1)
    qkv = _linear(x, weight, torch.cat(biases).flatten()).unflatten(-1, (-1, cfg.d_head))
    q, k, v = qkv.split([len(w) for w in weights], dim=2)  # [batch, pos, head, d_head]
    q, k, v = attn.hook_q(q), attn.hook_k(k), attn.hook_v(v)
    if _norms_each_head(cfg):
        norm: Any = attn._apply_qk_norm
        q, k = norm(q, attn.q_norm), norm(k, attn.k_norm)
    if cfg.positional_embedding_type == "rotary":
        q, k = attn.apply_rotary(q), attn.apply_rotary(k)
    repeats = len(weights[0]) // len(weights[1])
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
    n_pos = x.shape[1]
    sees_all = attn.attn_type == "global" or n_pos <= cfg.window_size
    z: Tensor = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2).to(q.dtype),
        v.transpose(1, 2).to(q.dtype),
        attn_mask=None if sees_all else _window_mask(n_pos, cfg.window_size, x.device),
        is_causal=sees_all,
        scale=1.0 / float(attn.attn_scale),
    ).to(v.dtype)
    z = attn.hook_z(z.transpose(1, 2))
    return _linear(z.flatten(2), attn.W_O.flatten(0, 1), attn.b_O)


def _window_mask(n_pos: int, size: int, device: torch.device) -> Bool[Tensor, "pos pos"]:
    """Which of the last `size` positions each position sees."""
    return torch.ones(n_pos, n_pos, dtype=torch.bool, device=device).tril().triu(1 - size)


def _mlp(block: Any, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    mlp = block.mlp
    if type(mlp) is not MLP or mlp.act_fn is not gelu_new:
        return block.apply_mlp(x)
    # gelu_new is GELU's tanh approximation, written out.
    pre = mlp.hook_pre(_linear(x, mlp.W_in, mlp.b_in))
    post = mlp.hook_post(F.gelu(pre, approximate="tanh"))
    out = _linear(post, mlp.W_out, mlp.b_out)
    if block.cfg.use_normalization_before_and_after:
        out = _normalised(block.ln2_post, out)
    return block.hook_mlp_out(out)


def _normalised(norm: nn.Module, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    if not isinstance(norm, (LayerNorm, LayerNormPre)):
        return norm(x)
    dtype = norm.cfg.dtype
    # As in TransformerLens, half precision is normalised in float32.
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    has_weights = isinstance(norm, LayerNorm)
    if has_weights and LAYER_NORM_HOOK_IS_BEFORE_WEIGHT:
        normalised = F.layer_norm(x.to(wide), x.shape[-1:], eps=norm.eps)
        return torch.addcmul(norm.b, norm.hook_normalized(normalised).to(dtype), norm.w)
    weight = norm.w.to(wide) if has_weights else None
    bias = norm.b.to(wide) if has_weights else None
    normalised = F.layer_norm(x.to(wide), x.shape[-1:], weight, bias, norm.eps)
    return norm.hook_normalized(normalised).to(dtype)


def _linear(
    x: Float[Tensor, "batch pos m"], weight: Float[Tensor, "m n"], bias: Float[Tensor, " n"]
) -> Float[Tensor, "batch pos n"]:
    return torch.addmm(bias, x.flatten(0, 1), weight).unflatten(0, x.shape[:2])
