"""How an SAE fits into a hook point's place, and a transcoder between two of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from sae_lens.hook_names import has_head_axis, refuse_wrong_order
from sae_lens.saes.base import SAE


def get_deep_attr(obj: Any, path: str) -> Any:
    """What a dotted path leads to; purely numeric parts index (`blocks.0.attn.hook_z`)."""
    for part in path.split("."):
        obj = obj[int(part)] if part.isdigit() else getattr(obj, part)
    return obj


def set_deep_attr(obj: Any, path: str, value: Any) -> None:
    """Put `value` where a dotted path leads; purely numeric parts index."""
    *parents, last = path.split(".")
    if parents:
        obj = get_deep_attr(obj, ".".join(parents))
    if last.isdigit():
        obj[int(last)] = value
    else:
        setattr(obj, last, value)


def replaced_hook(sae: SAE) -> str:
    """The hook whose activations an SAE replaces: that of its output, for a transcoder."""
    return _output_hook(sae) or sae.cfg.hook_name


def _output_hook(sae: SAE) -> str | None:
    """A transcoder's output hook; None for an SAE."""
    name = getattr(getattr(sae.cfg, "metadata", None), "hook_name_out", None)
    return None if name == sae.cfg.hook_name else name


class FitToHook:
    """Lets an SAE stand in for a hook point, whose output has the shape and dtype of its input.

    Registered as forward hooks on the SAE while it is attached: before its forward pass, the
    activations of several heads are flattened (or the one head picked) where the SAE does not do so
    itself; after it, shape and dtype become those of the model again.
    """

    def __init__(self, sae: SAE):
        self.d_in = int(sae.cfg.d_in)
        self.head = self.head_out = sae.cfg.hook_head_index
        self.original: Tensor | None = None

    def before(self, sae: SAE, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the SAE sees of the activations at the hook."""
        self.original = args[0]
        return (self._own_part(sae, args[0]), *args[1:])

    def _own_part(self, sae: SAE, x: Tensor) -> Tensor:
        if self.head is not None and x.ndim == 4:
            return x[:, :, self.head]
        flat = x.ndim == 4 and x.shape[-2] * x.shape[-1] == self.d_in != x.shape[-1]
        return x.flatten(-2) if flat and not sae.hook_z_reshaping_mode else x

    def after(self, sae: SAE, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The SAE's output in the place of those activations."""
        original, self.original = self.original, None
        if original is None:
            return output
        output = output.to(original.dtype)
        if self.head_out is not None and original.ndim == 4:
            replaced = original.clone()
            replaced[:, :, self.head_out] = output
            return replaced
        return output.reshape(original.shape)

    def attach(self, sae: SAE) -> list[RemovableHandle]:
        """Register both on an SAE."""
        return [
            sae.register_forward_pre_hook(self.before),
            sae.register_forward_hook(self.after),
        ]


class FitTranscoder(FitToHook):
    """Lets a transcoder stand in for its output hook, fed with what its input hook gave before."""

    def __init__(self, sae: SAE):
        super().__init__(sae)
        self.head_out = sae.cfg.metadata.hook_head_index_out
        self.entry: str = sae.cfg.hook_name
        self.exit = replaced_hook(sae)
        self.read: Tensor | None = None
        self._listening_to: Any = None
        self._handle: RemovableHandle | None = None

    def before(self, sae: SAE, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The activations of the input hook, whatever those of the output hook are."""
        read, self.read = self.read, None
        if read is None:
            raise ValueError(
                f"The output hook {self.exit!r} ran before the input hook {self.entry!r}, or "
                "without it; a transcoder's input has to come first."
            )
        self.original = args[0]
        return (self._own_part(sae, read), *args[1:])

    def listen(self, model: HookedTransformer) -> None:
        """Read what now stands at the input hook: a hook point, or an SAE in its place."""
        module = get_deep_attr(model, self.entry)
        if module is self._listening_to:
            return
        self.stop_listening()
        self._listening_to = module
        if isinstance(module, HookPoint):
            listening_hook_point(module).readers.append(self)
        else:
            self._handle = module.register_forward_hook(self._remember)

    def stop_listening(self) -> None:
        """Leave the input hook as it was."""
        module, self._listening_to, self.read = self._listening_to, None, None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        elif isinstance(module, ListeningHookPoint):
            module.readers.remove(self)
            if not module.readers:
                del module.readers
                module.__class__ = HookPoint  # type: ignore[assignment]

    def _remember(self, module: Any, args: Any, output: Tensor) -> None:
        self.read = output


class ListeningHookPoint(HookPoint):
    """A hook point that also hands on what it gave, after all interventions of whatever age.

    Hooks run in the order in which they were added, so one more of them would miss what later ones
    do. An ordinary hook point is made one of these for the time being, with its hooks.
    """

    readers: list[FitTranscoder]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As every hook point."""
        output = super().__call__(*args, **kwargs)
        for reader in self.readers:
            reader.read = output
        return output


def listening_hook_point(point: HookPoint) -> ListeningHookPoint:
    """The hook point itself, as one that hands on what it gives."""
    if not isinstance(point, ListeningHookPoint):
        point.__class__ = ListeningHookPoint
        point.readers = []  # type: ignore[assignment]
    return point  # type: ignore[return-value]


def check_fits(model: HookedTransformer, sae: SAE, use_error_term: bool | None = None) -> None:
    """Refuse an SAE that cannot stand where its config says.

    Raises:
        ValueError: when a width is another than that of the hook, a transcoder's output hook runs
            before its input hook or is not there, it is to add an error term, or the SAE reads
            several hooks.
    """
    name, out_name = sae.cfg.hook_name, _output_hook(sae)
    if getattr(sae.cfg, "sites", None):
        raise ValueError(
            f"This SAE ({sae.cfg.architecture}) reads several hooks and cannot stand in for one. "
            "Judge it with sae_lens.evals; hooks that put a cross-layer transcoder in the place of "
            "its MLPs are those of sae_lens.analysis.splicing.CrossLayerReplacement."
        )
    _check_width(model, sae, "d_in", name, sae.cfg.hook_head_index)
    if out_name is None:
        return
    refuse_wrong_order(name, out_name)
    if use_error_term:
        raise ValueError(
            f"use_error_term=True is for SAEs: this one maps {name!r} to {out_name!r} (a "
            "transcoder), and its output is no reconstruction of its input."
        )
    _check_width(model, sae, "d_out", out_name, sae.cfg.metadata.hook_head_index_out)


def _check_width(
    model: HookedTransformer, sae: SAE, field: str, name: str, head: int | None
) -> None:
    widths = hook_widths(model, name, head)
    width = getattr(sae.cfg, field, sae.cfg.d_in)
    if widths and width not in widths:
        raise ValueError(
            f"The SAE has {field}={width}, but the activations of this model at "
            f"{name!r} have width {widths[0]}. Attach it to the model it was trained on "
            f"({sae.cfg.model_name!r}), or choose another SAE."
        )


# Hooks on the residual stream or on what is read from and added to it.
_D_MODEL_HOOKS = frozenset(
    {
        "hook_embed",
        "hook_pos_embed",
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
        "hook_attn_out",
        "hook_mlp_out",
        "hook_attn_in",
        "hook_mlp_in",
        "hook_q_input",
        "hook_k_input",
        "hook_v_input",
    }
)
_NORM_MODULES = frozenset({"ln1", "ln2", "ln1_post", "ln2_post", "ln_final"})


def hook_widths(model: HookedTransformer, name: str, head: int | None = None) -> tuple[int, ...]:
    """The widths that an SAE at a hook may have, the usual one first; empty when not known."""
    cfg = model.cfg
    parts = name.split(".")
    if has_head_axis(parts[-1]) and parts[-1] not in _D_MODEL_HOOKS:
        grouped = parts[-1] in ("hook_k", "hook_v") and not getattr(
            cfg, "ungroup_grouped_query_attention", False
        )
        n_heads = (getattr(cfg, "n_key_value_heads", None) if grouped else None) or cfg.n_heads
        d_head = cfg.d_head
        return (d_head,) if head is not None else (n_heads * d_head, d_head)
    if parts[-1] in _D_MODEL_HOOKS:
        return (cfg.d_model,)
    if parts[-1] == "hook_normalized" and parts[-2:-1] and parts[-2] in _NORM_MODULES:
        return (cfg.d_model,)
    if "mlp" in parts and parts[-1] in ("hook_pre", "hook_pre_linear", "hook_post") and cfg.d_mlp:
        return (cfg.d_mlp,)
    return ()
