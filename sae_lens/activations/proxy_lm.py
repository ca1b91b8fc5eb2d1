"""`HookedProxyLM`: hooks under the names of the modules of any Hugging Face language model."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from sae_lens.errors import InvalidArgumentError
from sae_lens.transformer_lens_versions import HookedRootModule, lm_cross_entropy_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HookedProxyLM(HookedRootModule):
    """A Hugging Face causal language model with a hook point on every named sub-module.

    Hooks carry the module's own dotted name (`transformer.h.4`) and act on its output: a tensor, or
    the first element of a tuple. They are ordinary forward hooks and stay on the wrapped model.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.setup()

    def setup(self) -> None:
        """Give every named sub-module of the wrapped model its hook point."""
        self.mod_dict = {}
        self.hook_dict = {}
        for name, module in self.model.named_modules():
            if name == "":
                continue
            hook_point = HookPoint()
            hook_point.name = name
            for handle_id, hook in list(module._forward_hooks.items()):
                if isinstance(hook, OutputHook):
                    del module._forward_hooks[handle_id]
            module.register_forward_hook(get_hook_fn(hook_point))
            self.hook_dict[name] = hook_point
            self.mod_dict[name] = hook_point

    def forward(
        self,
        tokens: Tensor,
        return_type: Literal["both", "logits"] = "logits",
        loss_per_token: bool = False,
        stop_at_layer: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits [batch, pos, d_vocab], or for "both" a pair of logits and next-token loss.

        Args:
            tokens: [batch, pos].
            return_type: "logits" or "both".
            loss_per_token: the loss as [batch, pos - 1] instead of its mean.
            stop_at_layer: accepted as TransformerLens models do, without effect.
            kwargs: those that the wrapped model's forward knows are passed on.

        Raises:
            NotImplementedError: for other return types.
        """
        if return_type not in ("logits", "both"):
            raise NotImplementedError(
                f"return_type {return_type!r} is not supported; use 'logits' or 'both'."
            )
        known = signature(self.model.forward).parameters
        # Keys and values would be kept for generating text, and thrown away here.
        kwargs = {"use_cache": False, **kwargs}
        output = self.model(tokens, **{k: v for k, v in kwargs.items() if k in known})
        logits = _extract_logits_from_output(output)
        if return_type == "logits":
            return logits

        from transformer_lens.HookedTransformer import Output

        targets = tokens.to(logits.device)
        return Output(logits, lm_cross_entropy_loss(logits, targets, per_token=loss_per_token))

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: Literal["left", "right"] | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Tensor:
        """Token ids [batch, pos] on the CPU, without a BOS that the tokenizer adds by itself.

        Raises:
            InvalidArgumentError: unless prepend_bos, move_to_device and truncate are False and
                padding_side is None; nothing else is supported.
        """
        given = (prepend_bos, padding_side, move_to_device, truncate)
        if given != (False, None, False, False):
            raise InvalidArgumentError(
                "HookedProxyLM.to_tokens supports only prepend_bos=False, padding_side=None, "
                f"move_to_device=False and truncate=False, but was given {given} for these. Use "
                "the tokenizer itself for anything else."
            )
        if self.tokenizer is None:
            raise InvalidArgumentError("HookedProxyLM has no tokenizer; pass one to tokenise text.")
        tokenize: Any = self.tokenizer
        tokens: Tensor = tokenize(input, return_tensors="pt", truncation=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        adds_bos = bos is not None and tokenize("")["input_ids"][:1] == [bos]
        return tokens[:, 1:] if adds_bos else tokens


class OutputHook:
    """Passes a module's output, or the first element of an output tuple, through a hook point."""

    def __init__(self, hook_point: HookPoint):
        self.hook_point = hook_point

    def __call__(self, module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        """The output with what is passed on in its place; other kinds of output as they are."""
        if isinstance(output, Tensor):
            return self.passed(output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (self.passed(output[0]), *output[1:])
        return output

    def passed(self, output: Tensor) -> Tensor:
        """What takes the place of the output."""
        return self.hook_point(output)


def get_hook_fn(hook_point: HookPoint) -> OutputHook:
    """A forward hook that lets `hook_point` see, and replace, the output of a module."""
    return OutputHook(hook_point)


def _extract_logits_from_output(output: Any) -> Tensor:
    """Logits as a tensor, the first element of a tuple, or the `logits` entry."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and isinstance(output[0], Tensor):
        return output[0]
    is_mapping = isinstance(output, Mapping)
    logits = output.get("logits") if is_mapping else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ValueError(
        f"Cannot find logits in an output of type {type(output).__name__}: expected a tensor, a "
        "tuple that begins with one, or an entry named 'logits'."
    )
