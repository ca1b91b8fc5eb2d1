"""Operations on rows of activations that go together with the tokens they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def permute_together(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Permute the first axis of all tensors by one random permutation."""
    order = torch.randperm(tensors[0].shape[0])
    return tuple(tensor[order.to(tensor.device)] for tensor in tensors)


def filter_excluded(buffer: tuple[Tensor, Tensor | None], exclude_tokens: Tensor | None) -> Tensor:
    """The activations whose token is not one of `exclude_tokens`.

    Args:
        buffer: activations [row, ...] and their token ids [row]; without ids nothing is left out.
        exclude_tokens: ids to leave out; None for none.
    """
    activations, token_ids = buffer
    if token_ids is None or exclude_tokens is None:
        return activations
    kept = ~torch.isin(token_ids, exclude_tokens.to(token_ids.device))
    return activations[kept.to(activations.device)]


def require_one_for_each_token(tokens: Tensor, found: Mapping[str, Tensor]) -> None:
    """`ValueError` unless there is one activation of each hook for each token."""
    lengths = {name: tuple(acts.shape[:2]) for name, acts in found.items()}
    if any(length != tuple(tokens.shape) for length in lengths.values()):
        listed = ", ".join(f"{length} at {name!r}" for name, length in lengths.items())
        raise ValueError(
            f"The hooks are of different lengths: for tokens of shape {tuple(tokens.shape)} there "
            f"are activations {listed}. An SAE of several hooks needs one of each for every token; "
            "choose other hooks."
        )


def require_inputs_first(
    model: Any,
    tokens: Tensor,
    inputs: Sequence[str],
    outputs: Sequence[str],
    model_kwargs: Mapping[str, Any],
) -> None:
    """`ValueError` unless each input hook runs before its output hook, one pair after the other.

    Models without `run_with_hooks` do not tell.
    """
    if not hasattr(model, "run_with_hooks"):
        return
    order: list[str] = []
    hooks = [
        (name, lambda value, hook: order.append(hook.name))
        for name in dict.fromkeys((*inputs, *outputs))
    ]
    model.run_with_hooks(tokens, fwd_hooks=hooks, **model_kwargs)
    wanted = [name for pair in zip(inputs, outputs, strict=True) for name in pair]
    if order == wanted:
        return
    if len(wanted) == 2:
        raise ValueError(
            f"hook_name_out={outputs[0]!r} runs before hook_name={inputs[0]!r}; a transcoder's "
            "input has to come first. Exchange them."
        )
    raise ValueError(
        f"The hooks run in the order {order}; they must be given so that each input comes before "
        f"its output, layer by layer: {wanted} is not."
    )
