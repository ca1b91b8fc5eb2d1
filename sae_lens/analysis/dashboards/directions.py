"""What can be read off the decoder alone: logits and neighbours of features."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.analysis.dashboards.data import LogitEffect, Neighbor
from sae_lens.analysis.interventions import fact
from sae_lens.hook_names import layer_of

_CHUNK = 1024


def logit_effects(
    sae: Any, model: Any, features: Int[Tensor, " feature"], count: int
) -> tuple[list[list[LogitEffect]], list[list[LogitEffect]]]:
    """Tokens whose logits each feature raises and lowers most, as `W_dec @ W_U` says.

    Where the model's final norm still has a weight, that weight is part of the product; its
    division by the norm, which depends on the context, is not.

    Returns:
        Raised and lowered, one list per feature, strongest first. Empty lists where the decoder
        writes neither the residual stream nor one linear map away from it.
    """
    to_residual = _map_to_residual(sae, model)
    unembedding = _unembedding(model)
    if to_residual is None or unembedding is None:
        empty: list[list[LogitEffect]] = [[] for _ in features]
        return empty, empty
    raised: list[list[LogitEffect]] = []
    lowered: list[list[LogitEffect]] = []
    directions = sae.W_dec.detach().float()
    for part in features.split(_CHUNK):
        residual = directions[part.to(directions.device)].to(unembedding.device) @ to_residual
        effects = residual @ unembedding  # [feature, d_vocab]
        for sign, lists in ((1, raised), (-1, lowered)):
            values, tokens = (sign * effects).topk(min(count, effects.shape[1]), dim=1)
            for token_row, value_row in zip(tokens.tolist(), values.tolist(), strict=True):
                lists.append(
                    [
                        LogitEffect(token, float(f"{sign * value:.4g}"))
                        for token, value in zip(token_row, value_row, strict=True)
                    ]
                )
    return raised, lowered


def neighbors(sae: Any, features: Int[Tensor, " feature"], count: int) -> list[list[Neighbor]]:
    """Per feature, the `count` others with the highest cosine between decoder directions."""
    directions = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1)
    features = features.to(directions.device)
    result: list[list[Neighbor]] = []
    for part in features.split(_CHUNK):
        cosines = directions[part] @ directions.T
        cosines[torch.arange(len(part), device=cosines.device), part] = -torch.inf
        values, others = cosines.topk(min(count, cosines.shape[1] - 1), dim=1)
        for other_row, value_row in zip(others.tolist(), values.tolist(), strict=True):
            result.append([Neighbor(o, v) for o, v in zip(other_row, value_row, strict=True)])
    return result


def _unembedding(model: Any) -> Float[Tensor, "d_model d_vocab"] | None:
    """The unembedding with the weight of the norm before it, where that is known."""
    if hasattr(model, "W_U"):
        weight = model.W_U
        scale = getattr(getattr(model, "ln_final", None), "w", None)
    else:
        inner = getattr(model, "model", model)  # a wrapper around a Hugging Face model
        embeddings = getattr(inner, "get_output_embeddings", lambda: None)()
        if embeddings is None:
            return None
        weight = embeddings.weight.T
        scale = getattr(model, "final_norm_weight", None)
    weight = weight.detach().float()
    return weight if scale is None else weight * scale.detach().float()[:, None]


def _map_to_residual(sae: Any, model: Any) -> Float[Tensor, "d_in d_model"] | None:
    """The linear map from the SAE's output to the residual stream."""
    unembedding = _unembedding(model)
    if unembedding is None:
        return None
    d_model, d_out = unembedding.shape[0], sae.W_dec.shape[1]
    name = fact(sae.cfg, "hook_name_out") or sae.cfg.hook_name or ""
    if name.endswith(("attn.hook_z", "mlp.hook_post")):
        weight = _weight_into_residual(model, name)
        head = sae.cfg.hook_head_index
        if weight is not None and head is not None:
            weight = weight[head * d_out : (head + 1) * d_out]
    elif d_out == d_model and not any(kind in name for kind in ("hook_q", "hook_k", "hook_v")):
        weight = torch.eye(d_model, device=unembedding.device)
    else:
        return None
    return weight if weight is not None and weight.shape[0] == d_out else None


def _weight_into_residual(model: Any, hook_name: str) -> Float[Tensor, "width d_model"] | None:
    """The weights behind the heads' outputs (side by side) or the neurons of an MLP."""
    if hasattr(model, "weight_into_residual"):
        weight = model.weight_into_residual(hook_name)
        return None if weight is None else weight.detach().float()
    if not hasattr(model, "blocks") or model.cfg.use_normalization_before_and_after:
        return None
    block = model.blocks[layer_of(hook_name)]
    is_heads = hook_name.endswith("hook_z")
    weight = block.attn.W_O.flatten(0, 1) if is_heads else block.mlp.W_out
    return weight.detach().float()
