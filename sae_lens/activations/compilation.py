"""Language models compiled by `torch.compile`, where activations are gathered from them.

Gathering stops at a hook and takes what passes there, which would split a compiled forward pass and
compile it anew at each call. So what is compiled is a block of `fused_forward.py` in which nothing
is looked at: one compiled function serves all of them, and the block that has the hook runs as it
is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from sae_lens.activations.fused_forward import fusable_blocks, is_known_model, run_block

logger = logging.getLogger(__name__)

_compiled_blocks: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


def compile_model(model: Any, mode: str | None) -> Any:
    """The model, compiled; with a warning where that does not make gathering activations faster."""
    if not (is_known_model(model) and any(fusable_blocks(model))):
        logger.warning(
            "compile_llm compiles %s, but not what gathering activations runs of it: that is done "
            "for TransformerLens models with standard blocks alone. Expect no gain from it here.",
            type(model).__name__,
        )
    return torch.compile(model, mode=mode)


def is_compiled(model: Any) -> bool:
    """Whether the model is what `torch.compile` makes of a module."""
    return isinstance(model, torch.nn.Module) and "_orig_mod" in model._modules


def compiled_block(model: Any) -> Callable[..., Any]:
    """`run_block`, compiled with the settings of a compiled model."""
    if model not in _compiled_blocks:
        _compiled_blocks[model] = model.dynamo_ctx(run_block)
    return _compiled_blocks[model]
