"""`HookedSAETransformer`: SAEs and transcoders in the place of a transformer's hook points.

An attached SAE takes the place of the hook point whose activations it was trained on: the forward
pass runs through it, and its own hook points become part of the model, under the name of the hook
(`blocks.0.hook_resid_pre.hook_sae_acts_post` and so on), for caches and for interventions. A
transcoder takes the place of its output hook, such as an MLP's output, and goes by that name; what
it reads is what its input hook gave in the same pass.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformer_lens import ActivationCache, HookedTransformer
from transformer_lens.hook_points import HookPoint

from sae_lens.analysis.hook_fitting import (
    FitToHook,
    FitTranscoder,
    check_fits,
    get_deep_attr,
    hook_widths,
    replaced_hook,
    set_deep_attr,
)
from sae_lens.errors import InvalidArgumentError
from sae_lens.saes.base import SAE

SingleLoss = Float[Tensor, ""]
LossPerToken = Float[Tensor, "batch pos-1"]
Loss = SingleLoss | LossPerToken
Output = None | Tensor | tuple[Tensor, Tensor]

_NOT_REMEMBERED = object()


class _Use(NamedTuple):
    """What the context manager has to undo for one SAE."""

    name: str
    sae: SAE
    previous: SAE | None
    use_error_term: bool
    remembered: Any


class HookedSAETransformer(HookedTransformer):
    """A `HookedTransformer` that SAEs can be attached to.

    Made as a `HookedTransformer` is; `from_pretrained` and `from_pretrained_no_processing` are
    inherited and return this class.

    Attributes:
        acts_to_saes: the attached SAEs by the name of their hook.
    """

    def __init__(self, *model_args: Any, **model_kwargs: Any):
        super().__init__(*model_args, **model_kwargs)
        self.acts_to_saes: dict[str, SAE] = {}
        self._sae_handles: dict[str, list[RemovableHandle]] = {}
        self._transcoders: dict[str, FitTranscoder] = {}

    # -- attaching and detaching ------------------------------------------------------------------

    def add_sae(self, sae: SAE, use_error_term: bool | None = None, strict: bool = False) -> None:
        """Attach an SAE at its hook until it is reset.

        Args:
            sae: runs where the hook point `sae.cfg.hook_name` was, or that of its output for a
                transcoder; replaces an SAE attached there.
            use_error_term: override the SAE's own flag until it is reset; None leaves it alone.
            strict: raise, instead of warning, when the model has no such hook.

        Raises:
            ValueError: when the SAE's width is not that of the hook, when a transcoder is to add an
                error term, or, if strict, when a hook does not exist.
        """
        sae = _as_sae(sae)
        if self._attach(sae, use_error_term, strict):
            self.setup()

    def _attach(self, sae: SAE, use_error_term: bool | None, strict: bool) -> bool:
        """Attach without `setup()`; False when there is no such hook (with a warning)."""
        name = replaced_hook(sae)
        for wanted in (name, sae.cfg.hook_name):
            if wanted not in self.acts_to_saes and wanted not in self.hook_dict:
                message = (
                    f"No hook found for {wanted}; the SAE is not attached.{self._near(wanted)}"
                )
                if strict:
                    raise ValueError(message)
                logging.warning(message)
                return False
        check_fits(self, sae, use_error_term)
        if use_error_term is not None:
            previous_flag = sae.use_error_term
            sae.use_error_term = use_error_term
            if not hasattr(sae, "_original_use_error_term"):
                sae._original_use_error_term = previous_flag  # type: ignore[assignment]
        self._put(name, sae)
        return True

    def _near(self, name: str) -> str:
        known = [*self.acts_to_saes, *self.hook_dict]
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        return f"{hint} The model's hooks are in hook_dict."

    def _put(self, name: str, sae: SAE) -> None:
        self._remove_handles(name)
        set_deep_attr(self, name, sae)
        self.acts_to_saes[name] = sae
        fit = FitToHook(sae)
        if name != sae.cfg.hook_name:
            fit = self._transcoders[name] = FitTranscoder(sae)
        self._sae_handles[name] = fit.attach(sae)
        self._listen()

    def _listen(self) -> None:
        """Let transcoders read what stands at their input hooks now."""
        for fit in self._transcoders.values():
            fit.listen(self)

    def _remove_handles(self, name: str) -> None:
        for handle in self._sae_handles.pop(name, []):
            handle.remove()
        fit = self._transcoders.pop(name, None)
        if fit is not None:
            fit.stop_listening()

    def _reset_sae(self, act_name: str, prev_sae: SAE | None = None) -> None:
        """Detach the SAE at `act_name`, putting `prev_sae` or a fresh hook point in its place."""
        attached = self.acts_to_saes.get(act_name)
        if attached is None:
            logging.warning(f"No SAE is attached at {act_name!r}; there is nothing to reset.")
            return
        if hasattr(attached, "_original_use_error_term"):
            attached.use_error_term = attached._original_use_error_term  # type: ignore[assignment]
            del attached._original_use_error_term
        if prev_sae is not None:
            self._put(act_name, _as_sae(prev_sae))
        else:
            self._remove_handles(act_name)
            set_deep_attr(self, act_name, HookPoint())
            del self.acts_to_saes[act_name]
            self._listen()
        if prev_sae is not attached:
            # Its hook points carried the model's names; standing alone they have their own again.
            attached.setup()

    def reset_saes(
        self,
        act_names: str | Sequence[str] | None = None,
        prev_saes: Sequence[SAE | None] | None = None,
    ) -> None:
        """Detach SAEs.

        Args:
            act_names: hook names, one or several; None for all attached SAEs.
            prev_saes: what to put in their place, pairwise; None for a hook point. When given, as
                many as `act_names`.

        Raises:
            InvalidArgumentError: (a `ValueError`) when the two lengths differ.
        """
        if isinstance(act_names, str):
            act_names = [act_names]
        elif act_names is None:
            act_names = list(self.acts_to_saes)
        if prev_saes and len(prev_saes) != len(act_names):
            raise InvalidArgumentError(
                f"{len(act_names)} hook names were given with {len(prev_saes)} previous SAEs; give "
                "one previous SAE (or None) for each name."
            )
        for name, previous in zip(act_names, prev_saes or [None] * len(act_names), strict=True):
            self._reset_sae(name, previous)
        self.setup()

    @contextmanager
    def saes(
        self,
        saes: SAE | Sequence[SAE] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        strict: bool = False,
    ) -> Iterator[HookedSAETransformer]:
        """Attach SAEs for a block of code.

        On the way out, also by an exception, whatever was attached before is attached again, with
        the flags it had. SAEs whose hook is missing are left out with a warning.

        Args:
            saes: one or several; later ones replace earlier ones of the same hook.
            reset_saes_end: False leaves them attached.
            use_error_term: override their flags; None leaves them alone.
            strict: raise, instead of warning, when a hook is missing.

        Yields:
            The model itself.
        """
        uses: list[_Use] = []
        try:
            for sae in _as_list(saes):
                use = self._note(sae)
                if self._attach(sae, use_error_term, strict):
                    uses.append(use)
            self.setup()
        except BaseException:
            self._undo(uses)
            raise
        try:
            yield self
        finally:
            if reset_saes_end:
                self._undo(uses)

    def _note(self, sae: SAE) -> _Use:
        return _Use(
            name=replaced_hook(sae),
            sae=sae,
            previous=self.acts_to_saes.get(replaced_hook(sae)),
            use_error_term=sae.use_error_term,
            remembered=getattr(sae, "_original_use_error_term", _NOT_REMEMBERED),
        )

    def _undo(self, uses: list[_Use]) -> None:
        """Take back what a context manager did, the last first."""
        for use in reversed(uses):
            if use.name in self.acts_to_saes:
                self._reset_sae(use.name, use.previous)
            elif use.previous is not None:
                self._put(use.name, use.previous)
            # An SAE that was attached before keeps the flag it had then, not its older one.
            if hasattr(use.sae, "_original_use_error_term"):
                del use.sae._original_use_error_term
            use.sae.use_error_term = use.use_error_term
            if use.remembered is not _NOT_REMEMBERED:
                use.sae._original_use_error_term = use.remembered
        self.setup()

    # -- running ----------------------------------------------------------------------------------

    def run_with_saes(
        self,
        *model_args: Any,
        saes: SAE | Sequence[SAE] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        strict: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Call the model with SAEs attached; see `saes` for the keywords.

        Returns:
            What calling the model returns.
        """
        with self.saes(saes, reset_saes_end, use_error_term, strict):
            return self(*model_args, **model_kwargs)

    def run_with_cache_with_saes(
        self,
        *model_args: Any,
        saes: SAE | Sequence[SAE] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        strict: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache | dict[str, Tensor]]:
        """`run_with_cache` with SAEs attached; see `saes` for the keywords.

        Returns:
            Output and cache; the cache also holds the hooks of the SAEs.
        """
        with self.saes(saes, reset_saes_end, use_error_term, strict):
            return self.run_with_cache(  # type: ignore[call-overload]
                *model_args,
                return_cache_object=return_cache_object,  # pyright: ignore[reportArgumentType]
                remove_batch_dim=remove_batch_dim,
                **kwargs,
            )

    def run_with_hooks_with_saes(
        self,
        *model_args: Any,
        saes: SAE | Sequence[SAE] = (),
        reset_saes_end: bool = True,
        fwd_hooks: Sequence[tuple[str | Callable[..., Any], Callable[..., Any]]] = (),
        bwd_hooks: Sequence[tuple[str | Callable[..., Any], Callable[..., Any]]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        use_error_term: bool | None = None,
        strict: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """`run_with_hooks` with SAEs attached, whose hooks can be used; see `saes`."""
        with self.saes(saes, reset_saes_end, use_error_term, strict):
            return self.run_with_hooks(
                *model_args,
                fwd_hooks=list(fwd_hooks),
                bwd_hooks=list(bwd_hooks),
                reset_hooks_end=reset_hooks_end,
                clear_contexts=clear_contexts,
                **model_kwargs,
            )


def _as_sae(value: Any) -> SAE:
    """The SAE itself, also of the tuple that `SAE.from_pretrained` returns."""
    sae: Any = getattr(value, "sae", value) if isinstance(value, tuple) else value
    return sae


def _as_list(saes: Any) -> list[SAE]:
    """One SAE, one pretrained tuple, or a sequence of these, as a list."""
    if isinstance(saes, tuple) and hasattr(saes, "sae"):
        return [_as_sae(saes)]
    if isinstance(saes, (list, tuple)):
        return [_as_sae(sae) for sae in saes]
    return [saes]


__all__ = ["HookedSAETransformer", "get_deep_attr", "hook_widths", "set_deep_attr"]
