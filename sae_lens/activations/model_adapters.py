"""Tokens in, the activations of one hook out, whatever the model.

`activations_at` chooses the way: models whose hooks are TransformerLens hook points are run only as
far as the hook, everything else through its own `run_with_cache`. `activations_at_hooks` does the
same for several hooks of one forward pass. Beside them stand the few facts about a model that the
store needs: device, vocabulary, context length, names of hooks.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from sae_lens.activations.compilation import compiled_block, is_compiled
from sae_lens.activations.fused_forward import can_run_fused, fusable_blocks, run_fused
from sae_lens.transformer_lens_versions import HookedRootModule

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
    *,
    fused: bool = True,
) -> Float[Tensor, "batch pos *width"]:
    """The activations at `hook_name`, as the model gives them; see `activations_at_hooks`."""
    hooks = [hook_name]
    found = activations_at_hooks(model, tokens, hooks, stop_at_layer, model_kwargs, fused=fused)
    return found[hook_name]


def activations_at_hooks(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    hook_names: Sequence[str],
    stop_at_layer: int,
    model_kwargs: dict[str, Any],
    *,
    fused: bool = True,
) -> dict[str, Tensor]:
    """The activations [batch, pos, *width] at several hooks, from one forward pass.

    Args:
        model: a TransformerLens model, a `HookedProxyLM`, a compiled one of these, or any object
            with a `run_with_cache` like theirs.
        tokens: token ids on the model's device.
        hook_names: hooks of the model.
        stop_at_layer: where models that know this argument may stop.
        model_kwargs: further arguments of the forward pass.
        fused: whether blocks of a `HookedTransformer` that nobody looks into may be run by fewer,
            larger operations; the values agree up to rounding.

    Raises:
        ValueError: when a hook is not in the model, or does not run in a forward pass.
    """
    if _runs_truncated(model, model_kwargs):
        return _run_to_hooks(model, tokens, hook_names, model_kwargs, fused)
    if is_compiled(model) and _runs_truncated(model._orig_mod, model_kwargs):
        return _run_compiled(model, tokens, hook_names, stop_at_layer, model_kwargs, fused)
    arguments = {
        "names_filter": list(hook_names),
        "stop_at_layer": stop_at_layer,
        "prepend_bos": False,
        **model_kwargs,
    }
    cache = model.run_with_cache(tokens, **arguments)[1]
    found = {}
    for name in hook_names:
        try:
            found[name] = cache[name]
        except KeyError:
            require_hook(model, name)
            raise ValueError(_did_not_run(name)) from None
    return found


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


class _HooksReached(Exception):
    """Ends a forward pass once the wanted activations are there."""


class _Collector:
    """Keeps what hook points put out, and may end the forward pass when it has everything."""

    def __init__(self, hook_names: Iterable[str], stop: bool):
        self.missing = set(hook_names)
        self.stop = stop
        self.found: dict[str, Tensor] = {}

    def take(self, hook_name: str, activations: Tensor) -> None:
        self.found[hook_name] = activations
        self.missing.discard(hook_name)
        if self.stop and not self.missing:
            raise _HooksReached


class _Grab:
    """A forward hook that hands what a hook point puts out to a collector."""

    def __init__(self, hook_name: str, collector: _Collector):
        self.hook_name = hook_name
        self.collector = collector

    def __call__(self, module: HookPoint, inputs: Any, output: Tensor) -> None:
        self.collector.take(self.hook_name, output)


def _collecting(model: HookedRootModule, collector: _Collector) -> ExitStack:
    """Inside, the hook points hand their outputs to `collector`."""
    stack = ExitStack()
    for name in sorted(collector.missing):
        handle = model.hook_dict[name].register_forward_hook(_Grab(name, collector))
        stack.callback(handle.remove)
    return stack


def _run_to_hooks(
    model: Any,
    tokens: Tensor,
    hook_names: Sequence[str],
    model_kwargs: dict[str, Any],
    fused: bool,
    block_function: Callable[..., Tensor] | None = None,
) -> dict[str, Tensor]:
    for name in hook_names:
        require_hook(model, name)
    may_fuse = fused and not model_kwargs and can_run_fused(model)
    is_fusable = fusable_blocks(model) if may_fuse else []  # before there are hooks of our own
    collector = _Collector(hook_names, stop=True)
    with _collecting(model, collector):
        try:
            if any(is_fusable):
                run_fused(model, tokens, hook_names, is_fusable, block_function)
            else:
                model(tokens, **{"prepend_bos": False, **model_kwargs})
        except _HooksReached:
            return collector.found
    raise ValueError(_did_not_run(min(collector.missing)))


def _run_compiled(
    model: Any,
    tokens: Tensor,
    hook_names: Sequence[str],
    stop_at_layer: int,
    model_kwargs: dict[str, Any],
    fused: bool,
) -> dict[str, Tensor]:
    original = model._orig_mod
    if fused and not model_kwargs and can_run_fused(original) and any(fusable_blocks(original)):
        function = compiled_block(model)
        return _run_to_hooks(original, tokens, hook_names, model_kwargs, fused, function)
    for name in hook_names:
        require_hook(model, name)
    collector = _Collector(hook_names, stop=False)
    with _collecting(model, collector):
        arguments = {"prepend_bos": False, "stop_at_layer": stop_at_layer, **model_kwargs}
        model(tokens, **arguments)
    if collector.missing:
        return _run_to_hooks(original, tokens, hook_names, model_kwargs, fused=False)
    return collector.found


def _runs_truncated(model: Any, model_kwargs: dict[str, Any]) -> bool:
    """Whether the model's `run_with_cache` is TransformerLens's own, so that hooks can stand in."""
    return (
        isinstance(model, HookedRootModule)
        and type(model).run_with_cache in _KNOWN_RUN_WITH_CACHE
        and "run_with_cache" not in vars(model)
        and not _CACHE_ARGUMENTS.intersection(model_kwargs)
    )


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
