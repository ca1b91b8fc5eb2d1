"""Hugging Face models that also answer to TransformerLens hook names.

The model's own implementation runs, with its fused attention, and nothing behind the hook does: a
store ends the forward pass as soon as it has what it asked for. So a run whose config says
`blocks.4.hook_resid_pre` can use either kind of model; the activations are those of TransformerLens
without weight processing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from sae_lens.activations.hf_hook_table import Family, Place, attention_it_needs, family_of
from sae_lens.activations.proxy_lm import HookedProxyLM, OutputHook

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def hooked_causal_lm(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> HookedProxyLM:
    """Hooks for any Hugging Face causal language model, with TransformerLens names if known."""
    if family_of(getattr(model, "config", None)) is None:
        return HookedProxyLM(model, tokenizer)
    return HookedCausalLM(model, tokenizer)


class HookedCausalLM(HookedProxyLM):
    """A Hugging Face model whose hooks have the names of its modules and those of TransformerLens.

    The TransformerLens names are `hook_embed` and, in each layer, `hook_resid_pre`,
    `hook_resid_mid` (where attention and MLP follow each other), `hook_resid_post`,
    `hook_attn_out`, `hook_mlp_out`, `attn.hook_z`, `mlp.hook_pre` and `mlp.hook_post`. Their
    activations have TransformerLens's shapes, and what a hook returns takes their place.

    Raises:
        ValueError: for a model of a family that `hf_hook_table` does not know.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None):
        config: Any = getattr(model, "config", None)
        family = family_of(config)
        if family is None:
            raise ValueError(
                f"A model of type {getattr(config, 'model_type', None)!r} has no TransformerLens "
                "names here. Use HookedProxyLM, whose hooks have the names of the modules."
            )
        self._family: Family = family
        needed = attention_it_needs(config)
        if needed is not None and config._attn_implementation != needed:
            logger.info("Using %s attention, the one that computes all this model has.", needed)
            model.set_attn_implementation(needed)  # type: ignore[operator]
        super().__init__(model, tokenizer)

    def setup(self) -> None:
        """Give every named sub-module its hook point, and every known activation another one."""
        super().setup()
        for module in self.model.modules():
            _remove_input_hooks(module)
        decoder = self._decoder
        layers: Any = getattr(decoder, self._family.layers)
        if self._family.embedding is not None:
            self._hook_output(decoder.get_submodule(self._family.embedding), "hook_embed")
        else:
            self._hook_input(layers[0], "hook_embed")
        for index, layer in enumerate(layers):
            for name, place in self._family.in_layer.items():
                self._hook_place(layer, place, f"blocks.{index}.{name}")

    @property
    def _decoder(self) -> nn.Module:
        """The decoder without the unembedding, or the model itself if it has none."""
        parts = [self.model, *self.model.children()]
        return next(part for part in parts if hasattr(part, self._family.layers))

    @property
    def final_norm_weight(self) -> Float[Tensor, " d_model"]:
        """What the norm behind the last layer multiplies by."""
        norm: Any = self._decoder.get_submodule(self._family.final_norm)
        # Gemma's norms keep their weight's distance from one.
        return norm.weight + 1 if "Gemma" in type(norm).__name__ else norm.weight

    def weight_into_residual(self, hook_name: str) -> Float[Tensor, "width d_model"] | None:
        """The linear map from a hook to the residual stream of its layer; None if there is none.

        It exists at `attn.hook_z` (heads side by side) and `mlp.hook_post`, where the branch is
        not normalised behind it.
        """
        block, _, name = hook_name.removeprefix("blocks.").partition(".")
        is_inner = name in ("attn.hook_z", "mlp.hook_post")
        if not is_inner or self._family.normalises_branches:
            return None
        layers: Any = getattr(self._decoder, self._family.layers)
        module = layers[int(block)].get_submodule(self._family.in_layer[name].module)
        # GPT-2 keeps [in, out], linear layers [out, in].
        return module.weight.T if isinstance(module, nn.Linear) else module.weight

    def _hook_place(self, layer: nn.Module, place: Place, name: str) -> None:
        module = layer.get_submodule(place.module)
        if place.is_between:
            between = _BetweenHook(self._new_point(name))
            module.register_forward_pre_hook(between, with_kwargs=True)
            # Before any hook sees the layer's output, the change must be in it.
            layer.register_forward_hook(_CarryOn(between), prepend=True)
        elif place.side == "input":
            self._hook_input(module, name, place.has_heads)
        else:
            self._hook_output(module, name)

    def _new_point(self, name: str) -> HookPoint:
        point = HookPoint()
        point.name = name
        self.hook_dict[name] = point
        self.mod_dict[name] = point
        return point

    def _hook_output(self, module: nn.Module, name: str) -> None:
        module.register_forward_hook(OutputHook(self._new_point(name)))

    def _hook_input(self, module: nn.Module, name: str, has_heads: bool = False) -> None:
        config: Any = self.model.config
        n_heads = config.num_attention_heads if has_heads else None
        hook = _InputHook(self._new_point(name), n_heads)
        module.register_forward_pre_hook(hook, with_kwargs=True)


class _InputHook:
    """Passes the first input of a module through a hook point, by heads where it has them."""

    def __init__(self, hook_point: HookPoint, n_heads: int | None = None):
        self.hook_point = hook_point
        self.n_heads = n_heads

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (self.passed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self.passed(kwargs["hidden_states"])}

    def passed(self, x: Tensor) -> Tensor:
        if self.n_heads is None:
            return self.hook_point(x)
        return self.hook_point(x.unflatten(-1, (self.n_heads, -1))).flatten(-2)


class _BetweenHook(_InputHook):
    """The same for the residual stream between the halves of a layer; remembers what changed."""

    change: Tensor | None = None

    def passed(self, x: Tensor) -> Tensor:
        replaced = self.hook_point(x)
        self.change = None if replaced is x else replaced - x
        return replaced


class _CarryOn(OutputHook):
    """Adds what a hook changed in the middle of a layer to the layer's output."""

    def __init__(self, between: _BetweenHook):
        super().__init__(between.hook_point)
        self.between = between

    def passed(self, output: Tensor) -> Tensor:
        change, self.between.change = self.between.change, None
        return output if change is None else output + change


def _remove_input_hooks(module: nn.Module) -> None:
    for handle_id, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, _InputHook):
            del module._forward_pre_hooks[handle_id]
            module._forward_pre_hooks_with_kwargs.pop(handle_id, None)
