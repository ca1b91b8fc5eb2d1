"""What SAEs over several hooks share: their hooks in the config, and rows that hold all of them.

A row is the activations of all hooks at one token, side by side, in the order of the config. Inputs
may come in this form, [..., hooks * d_in], or with an axis for the hooks, [..., hooks, d_in].
Outputs have the form of the input; `decode` gives the one with an axis until an input was flat.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_lens.saes.base import SAE
from sae_lens.saes.normalization import NORMALIZATION_KINDS, denormalize, needs_stats, normalize
from sae_lens.saes.training import TrainingSAE


class HookSite(NamedTuple):
    """A hook of one of the models."""

    model: int
    hook_name: str


def check_names(field: str, names: Sequence[str]) -> None:
    """`ValueError` for something else than a list of names, or for one that is there twice."""
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{field} is {names!r}; it must be a list of names.")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"{field} names {', '.join(twice)} more than once; leave out the rest.")


def check_settings(config: Any, kind: str) -> None:
    """Refuse settings of an SAE that have no meaning for several hooks.

    Raises:
        ValueError: naming the setting and what is allowed.
    """
    if config.apply_b_dec_to_input:
        raise ValueError(
            f"apply_b_dec_to_input must be False for a {kind}: its encoders have a bias each."
        )
    if config.normalize_activations not in NORMALIZATION_KINDS:
        raise ValueError(
            f"normalize_activations is {config.normalize_activations!r}; a {kind} is trained with "
            f"one of {', '.join(NORMALIZATION_KINDS)}, which are taken hook by hook."
        )
    if config.hook_head_index is not None:
        raise ValueError(
            f"hook_head_index is {config.hook_head_index}; a {kind} reads whole hooks. Leave it "
            "out."
        )


class SeveralHooks(SAE):
    """The part of an SAE that knows how many hooks its rows hold.

    Attributes:
        n_hooks: how many are read.
        d_in_of_hook: width of each.
    """

    def __init__(self, cfg: Any, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        self.gives_rows = False

    @property
    def _layout(self) -> Any:
        """The config that knows the hooks, also while the base constructor runs."""
        return self.__dict__.get("_training_cfg", self.cfg)

    @property
    def n_hooks(self) -> int:
        """How many hooks are read."""
        return len(self._layout.sites)

    @property
    def d_in_of_hook(self) -> int:
        """Width of each."""
        return int(self._layout.d_in)

    @staticmethod
    def _reshapes_hook_z(cfg: Any) -> bool:
        return False

    def reshape_fn_in(self, x: Tensor) -> Tensor:
        """Rows of inputs in either form.

        Raises:
            ValueError: for another shape.
        """
        hooks, width = self.n_hooks, self.d_in_of_hook
        self.gives_rows = x.shape[-1] == hooks * width
        if self.gives_rows:
            return x
        if x.shape[-2:] != (hooks, width):
            raise ValueError(
                f"Inputs have the shape [..., {hooks}, {width}] (hooks, width) or "
                f"[..., {hooks * width}]; these have {list(x.shape)}."
            )
        return x.flatten(-2)

    def reshape_fn_out(self, x: Tensor, d_head: int | None) -> Tensor:
        """Rows, or what is theirs with an axis for the hooks."""
        return x if self.gives_rows else x.unflatten(-1, (self.n_hooks, -1))

    def run_time_activation_norm_fn_in(self, x: Tensor) -> Tensor:
        """Normalise each token's activation of each hook by itself."""
        kind = self.cfg.normalize_activations
        if not needs_stats(kind):
            self.norm_stats = None
            return x
        by_hook, self.norm_stats = normalize(kind, x.unflatten(-1, (self.n_hooks, -1)))
        return by_hook.flatten(-2)

    def run_time_activation_norm_fn_out(self, x: Tensor) -> Tensor:
        """Undo it, hook by hook."""
        kind = self.cfg.normalize_activations
        if not needs_stats(kind):
            return x
        by_hook = denormalize(kind, x.unflatten(-1, (self.n_hooks, -1)), self.norm_stats)
        return by_hook.flatten(-2)

    @torch.no_grad()
    def fold_activation_norm_scaling_factor(
        self, activation_norm_scaling_factor: float | Tensor
    ) -> None:
        """Make an SAE trained on scaled activations work on raw ones, in place.

        Args:
            activation_norm_scaling_factor: one factor, or one for each column of a row.
        """
        self._fold_decoder_norms_of_selection()
        factor = torch.as_tensor(
            activation_norm_scaling_factor, dtype=self.dtype, device=self.device
        )
        self._fold_scale(factor)
        self.cfg.normalize_activations = "none"

    def _fold_decoder_norms_of_selection(self) -> None:
        """Other norms would select other features; so let them be the encoder's before."""
        if getattr(self, "rescales_acts", False):
            self.fold_W_dec_norm()
            self.cfg.rescale_acts_by_decoder_norm = False

    def _fold_scale(self, factor: Tensor) -> None:
        raise NotImplementedError


class SeveralHooksTraining(SeveralHooks, TrainingSAE):
    """The part of every training class over several hooks."""

    @property
    def activation_widths(self) -> tuple[int, ...]:
        """Width of every activation in a training row."""
        n_written = len(getattr(self._layout, "target_sites", ()))
        return (self.d_in_of_hook,) * (self.n_hooks + n_written)

    def as_decoded(self, batch: Tensor) -> Tensor:
        """Rows of what is to be reconstructed, in the space of the decoders and their biases."""
        target = self.split_batch(batch)[1]
        if target is not batch:
            return target  # what normalises tokens is for what is read alone
        kind = self.cfg.normalize_activations
        return normalize(kind, target.unflatten(-1, (self.n_hooks, -1)))[0].flatten(-2)

    def inference_components(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and tensors of the inference form; decoder norms that select are folded."""
        if getattr(self, "rescales_acts", False):
            folded = copy.deepcopy(self)
            folded._fold_decoder_norms_of_selection()
            return folded.inference_components()
        values, state_dict = super().inference_components()
        for name in self._layout.keys_of_hooks:
            values[name] = getattr(self.cfg, name)
        return values, state_dict
