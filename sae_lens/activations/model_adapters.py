"""Tokens in, the activations of one hook out, whatever the model.

`activations_at` chooses the way: models whose hooks are TransformerLens hook points are run only as
far as the hook, everything else through its own `run_with_cache`. Beside it stand the few facts
about a model that the store needs: device, vocabulary, context length, names of hooks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookedRootModule, HookPoint

# Arguments of `run_with_cache` that `forward` does not know.
_CACHE_ARGUMENTS = frozenset(
    {
        "names_filter",
        "device",
        "remove_batch_dim",
        "incl_bwd",
        "reset_hooks_end",
        "clear_contexts",
        "pos_slice",
        "return_cache_object",
    }
)
_KNOWN_RUN_WITH_CACHE = (HookedRootModule.run_with_cache, HookedTransformer.run_with_cache)


def activations_at(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    stop_at_layer: int,
    model_kwargs: dict[str, Any],
) -> Float[Tensor, "batch pos *width"]:
    """The activations at `hook_name`, as the model gives them.

    Args:
        model: a TransformerLens model, a `HookedProxyLM`, a compiled one of these, or any object
            with a `run_with_cache` like theirs.
        tokens: token ids on the model's device.
        hook_name: one of the model's hooks.
        stop_at_layer: where models that know this argument may stop.
        model_kwargs: further arguments of the forward pass.

    Raises:
        ValueError: when the hook is not in the model, or does not run in a forward pass.
    """
    if _runs_truncated(model, model_kwargs):
        return _run_to_hook(model, tokens, hook_name, model_kwargs)
    if _is_compiled(model) and _runs_truncated(model._orig_mod, model_kwargs):
        return _run_compiled(model, tokens, hook_name, stop_at_layer, model_kwargs)
    arguments = {
        "names_filter": [hook_name],
        "stop_at_layer": stop_at_layer,
        "prepend_bos": False,
        **model_kwargs,
    }
    try:
        return model.run_with_cache(tokens, **arguments)[1][hook_name]
    except KeyError:
        require_hook(model, hook_name)
        raise ValueError(_did_not_run(hook_name)) from None


def model_device(model: Any) -> torch.device:
    """The device of `W_E`, else of the model's config, else of its first parameter."""
    embedding = getattr(model, "W_E", None)
    if isinstance(embedding, Tensor):
        return embedding.device
    device = getattr(getattr(model, "cfg", None), "device", None)
    if device is not None:
        return torch.device(device)
    return next(iter(model.parameters())).device


def vocabulary_size(model: Any) -> int | None:
    """How many token ids the model embeds, where it can be told."""
    known = _positive_int(getattr(getattr(model, "cfg", None), "d_vocab", None))
    if known is not None:
        return known
    get_embeddings = getattr(getattr(model, "model", None), "get_input_embeddings", None)
    if get_embeddings is None:
        return None
    return _positive_int(getattr(get_embeddings(), "num_embeddings", None))


def longest_context(model: Any) -> int | None:
    """The most tokens the model takes, where it can be told."""
    known = _positive_int(getattr(getattr(model, "cfg", None), "n_ctx", None))
    if known is not None:
        return known
    config = getattr(getattr(model, "model", None), "config", None)
    return _positive_int(getattr(config, "max_position_embeddings", None))


def require_hook(model: Any, hook_name: str) -> None:
    """Check that a model that lists its hooks has this one.

    Raises:
        ValueError: naming the nearest hooks that there are.
    """
    hooks = getattr(model, "hook_dict", None)
    if not isinstance(hooks, dict) or hook_name in hooks:
        return
    inside = [name for name in hooks if name.startswith(f"{hook_name}.")]
    if inside:
        raise ValueError(
            f"The hook {hook_name!r} is covered by something attached to it (hooks such as "
            f"{inside[0]!r}). Detach it, for example with model.reset_saes(), and try again."
        )
    raise ValueError(
        f"The model has no hook {hook_name!r}.{_near_matches(hook_name, hooks)} "
        "All names are in model.hook_dict."
    )


class _HookReached(Exception):
    """Ends a forward pass once the wanted activations are there."""


class _Grab:
    """A forward hook that keeps what a hook point puts out."""

    def __init__(self, stop: bool):
        self.stop = stop
        self.activations: Tensor | None = None

    def __call__(self, module: HookPoint, inputs: Any, output: Tensor) -> None:
        self.activations = output
        if self.stop:
            raise _HookReached


def _run_to_hook(
    model: HookedRootModule, tokens: Tensor, hook_name: str, model_kwargs: dict[str, Any]
) -> Tensor:
    require_hook(model, hook_name)
    grab = _Grab(stop=True)
    handle = model.hook_dict[hook_name].register_forward_hook(grab)
    try:
        model(tokens, **{"prepend_bos": False, **model_kwargs})
    except _HookReached:
        pass
    finally:
        handle.remove()
    if grab.activations is None:
        raise ValueError(_did_not_run(hook_name))
    return grab.activations


def _run_compiled(
    model: Any,
    tokens: Tensor,
    hook_name: str,
    stop_at_layer: int,
    model_kwargs: dict[str, Any],
) -> Tensor:
    require_hook(model, hook_name)
    grab = _Grab(stop=False)
    handle = model.hook_dict[hook_name].register_forward_hook(grab)
    try:
        arguments = {"prepend_bos": False, "stop_at_layer": stop_at_layer, **model_kwargs}
        model(tokens, **arguments)
    finally:
        handle.remove()
    if grab.activations is None:
        return _run_to_hook(model._orig_mod, tokens, hook_name, model_kwargs)
    return grab.activations


def _runs_truncated(model: Any, model_kwargs: dict[str, Any]) -> bool:
    """Whether the model's `run_with_cache` is TransformerLens's own, so that hooks can stand in."""
    return (
        isinstance(model, HookedRootModule)
        and type(model).run_with_cache in _KNOWN_RUN_WITH_CACHE
        and "run_with_cache" not in vars(model)
        and not _CACHE_ARGUMENTS.intersection(model_kwargs)
    )


def _is_compiled(model: Any) -> bool:
    return isinstance(model, torch.nn.Module) and "_orig_mod" in model._modules


def _did_not_run(hook_name: str) -> str:
    return (
        f"The hook {hook_name!r} is in the model but did not run in a forward pass. Some "
        "hooks must be switched on first (for example model.set_use_hook_mlp_in(True) for "
        "hook_mlp_in), and "
        "hook_layer must not be smaller than the hook's layer."
    )


def _near_matches(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def _positive_int(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
