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
from sae_lens.saes.training import TrainingSAE
from sae_lens.saes.weights import constant_parameter

SCALED_PER_HOOK = "expected_average_only_in"


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
    if config.normalize_activations not in ("none", SCALED_PER_HOOK):
        raise ValueError(
            f"normalize_activations is {config.normalize_activations!r}; a {kind} is trained with "
            f"'none' or {SCALED_PER_HOOK!r}, which gives each hook a factor of its own."
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

    def _empty(self, *shape: int) -> torch.nn.Parameter:
        return constant_parameter(*shape, value=0.0, dtype=self.dtype, device=self.device)

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
