"""`SAE`: the interface of every sparse autoencoder, and what they all do the same way.

An architecture fills in `initialize_weights`, `encode` and `fold_W_dec_norm`, one file each.
`SAE(cfg)` gives an instance of the class registered for `cfg.architecture`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.constants import DTYPE_MAP
from sae_lens.registry import get_sae_class
from sae_lens.saes.activation_fns import get_activation_fn
from sae_lens.saes.head_reshaping import HeadReshaping
from sae_lens.saes.hooks import (
    HookedRootModule,
    HookPoint,
    add_hook_points,
    has_active_hooks,
    hooks_disabled,
)
from sae_lens.saes.linear_maps import LinearMaps
from sae_lens.saes.normalization import NormStats, denormalize, normalize
from sae_lens.saes.placement import Placement
from sae_lens.saes.saving import Saving
from sae_lens.saes.weights import (
    constant_parameter,
    divisors,
    fold_activation_scale_,
    kaiming_parameter,
)

logger = logging.getLogger(__name__)


class SAE(LinearMaps, HeadReshaping, Placement, Saving, HookedRootModule):
    """A sparse autoencoder: `d_in` activations to `d_sae` features and back.

    Args:
        cfg: the config; kept as it is, not copied.
        use_error_term: whether `forward` adds what the reconstruction misses, so that its output
            equals its input until a feature is intervened on.

    Raises:
        ValueError: for an unknown architecture or activation function.
    """

    cfg: Any
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    finetuning_scaling_factor: nn.Parameter
    activation_fn: nn.Module
    hook_sae_input: HookPoint
    hook_sae_acts_pre: HookPoint
    hook_sae_acts_post: HookPoint
    hook_sae_output: HookPoint
    hook_sae_recons: HookPoint
    hook_sae_error: HookPoint

    #: the architecture that a class stands for; empty on `SAE` and `TrainingSAE` themselves
    architecture: str = ""

    def __class_getitem__(cls, _item: Any) -> type[SAE]:
        return cls

    def __new__(cls, cfg: Any = None, *_args: Any, **_kwargs: Any) -> Any:
        """An object of the class that `cfg.architecture` names."""
        variant: Any = cls if cfg is None else cls._class_for(str(cfg.architecture))
        return super().__new__(variant)

    @classmethod
    def _class_for(cls, architecture: str) -> type[SAE]:
        if cls.architecture:
            return cls
        variant = cls._registered_class(architecture)
        if cls in (SAE, *variant.__mro__):
            return variant
        # a subclass by a user of the general class: their methods first, then the architecture's
        return type(cls.__name__, (cls, variant), {"__module__": cls.__module__})

    @classmethod
    def _registered_class(cls, architecture: str) -> type[SAE]:
        return get_sae_class(architecture).sae_class

    def __init__(self, cfg: Any, use_error_term: bool = False):
        super().__init__()
        self.cfg = cfg
        if cfg.model_from_pretrained_kwargs:
            warnings.warn(
                "This SAE was trained on a model loaded with "
                f"model_from_pretrained_kwargs={cfg.model_from_pretrained_kwargs}. Load the model "
                "with HookedSAETransformer.from_pretrained_no_processing and these kwargs, so that "
                "its activations are those the SAE knows.",
                UserWarning,
                stacklevel=2,
            )
        self.activation_fn = self._make_activation_fn()
        if cfg.dtype not in DTYPE_MAP:
            raise KeyError(f"{cfg.dtype!r} is no dtype; allowed are {list(DTYPE_MAP)}.")
        self._initial_dtype = DTYPE_MAP[cfg.dtype]
        self._initial_device = torch.device(cfg.device)
        self.use_error_term = use_error_term
        self.initialize_weights()
        if cfg.finetuning_scaling_factor:
            self.finetuning_scaling_factor = self._vector(cfg.d_sae, 1.0)
        add_hook_points(self)
        # what the last encode needs undone by decode
        self.norm_stats: NormStats | None = None
        self.d_head: int | None = None
        self.hook_z_reshaping_mode = self._reshapes_hook_z(cfg)
        self.setup()

    # -- what an architecture fills in ------------------------------------------------------------

    def initialize_weights(self) -> None:
        """Create the parameters, in state-dict order. Random draws happen in that order."""
        raise NotImplementedError

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of `x`."""
        raise NotImplementedError

    def fold_W_dec_norm(self) -> None:
        """Give the decoder unit rows: features grow by the norms, reconstructions stay the same.

        Rows of zeros are left alone. Does nothing the second time.
        """
        self._fold_decoder_norms(self.b_enc.data)

    # -- encoding and decoding --------------------------------------------------------------------

    def process_sae_in(self, sae_in: Float[Tensor, "..."]) -> Float[Tensor, "... d_in"]:
        """Cast, flatten heads, fire `hook_sae_input`, normalise, subtract the decoder bias."""
        x = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.dtype)))
        x = self.run_time_activation_norm_fn_in(x)
        return x - self.b_dec if self.cfg.apply_b_dec_to_input else x

    def decode(self, feature_acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "..."]:
        """Reconstruction from features; undoes the normalisation and reshaping of the last encode.

        Raises:
            ValueError: when the normalisation needs an `encode` first.
        """
        scaled = self.apply_finetuning_scaling_factor(feature_acts)
        recons = self.linear_decode(scaled) + self.b_dec
        recons = self.run_time_activation_norm_fn_out(self.hook_sae_recons(recons))
        return self.reshape_fn_out(recons, self.d_head)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Encode and decode; with the error term, plus the error (no gradient) of a clean pass."""
        out = self.decode(self._encode_for_forward(x))
        if self.use_error_term:
            with torch.no_grad():
                target = x.to(out.dtype)
                error = target - self._clean_reconstruction(x, out)
            out = out + self.hook_sae_error(error)
        return self.hook_sae_output(out)

    def _encode_for_forward(self, x: Tensor) -> Tensor:
        return self.encode(x)

    def _clean_encode(self, x: Tensor) -> Tensor:
        """Encode as in inference: no noise."""
        return self.encode(x)

    def _clean_reconstruction(self, x: Tensor, out: Tensor) -> Tensor:
        """The reconstruction without interventions, noise, or a trace in anybody's cache."""
        if not has_active_hooks(self) and not self._forward_is_noisy():
            return out
        with hooks_disabled(self):
            return self.decode(self._clean_encode(x))

    def _forward_is_noisy(self) -> bool:
        return False

    def apply_finetuning_scaling_factor(self, feature_acts: Tensor) -> Tensor:
        """Features times the fine-tuned factor, when the config has one."""
        if self.cfg.finetuning_scaling_factor:
            return feature_acts * self.finetuning_scaling_factor
        return feature_acts

    def run_time_activation_norm_fn_in(self, x: Tensor) -> Tensor:
        """Normalise as `cfg.normalize_activations` says and remember the statistics."""
        x, self.norm_stats = normalize(self.cfg.normalize_activations, x)
        return x

    def run_time_activation_norm_fn_out(self, x: Tensor) -> Tensor:
        """Undo the normalisation of the last encode."""
        return denormalize(self.cfg.normalize_activations, x, self.norm_stats)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.norm_stats is not None:
            scale, shift = self.norm_stats
            state["norm_stats"] = NormStats(
                scale.detach(), None if shift is None else shift.detach()
            )
        return state

    # -- folds ------------------------------------------------------------------------------------

    def _fold_decoder_norms(self, *per_feature: Tensor) -> None:
        with torch.no_grad():
            self.divide_decoder_(divisors(self.decoder_norms()), *per_feature)

    def fold_activation_norm_scaling_factor(self, activation_norm_scaling_factor: float) -> None:
        """Make an SAE trained on scaled activations work on raw ones, in place.

        With factor s, afterwards `sae(x) == old_sae(s * x) / s`, and the config says "none".
        """
        with torch.no_grad():
            fold_activation_scale_(
                float(activation_norm_scaling_factor),
                self.W_enc.data,
                self.W_dec.data,
                self.b_dec.data,
            )
        self.cfg.normalize_activations = "none"

    # -- weights ----------------------------------------------------------------------------------

    def _make_activation_fn(self) -> nn.Module:
        return get_activation_fn(
            self.cfg.activation_fn_str, **(self.cfg.activation_fn_kwargs or {})
        )

    def _vector(self, size: int, value: float = 0.0) -> nn.Parameter:
        return constant_parameter(size, value=value, dtype=self.dtype, device=self.device)

    def _matrix(self, rows: int, columns: int) -> nn.Parameter:
        return kaiming_parameter(rows, columns, self.dtype, self.device)

    def initialize_weights_basic(self) -> None:
        """The four parameters of standard and topk SAEs."""
        self.b_enc = self._vector(self.cfg.d_sae)
        self.W_dec = self._matrix(self.cfg.d_sae, self.cfg.d_in)
        self.W_enc = self._matrix(self.cfg.d_in, self.cfg.d_sae)
        self.b_dec = self._vector(self.cfg.d_in)

    def initialize_weights_gated(self) -> None:
        """The parameters of gated SAEs."""
        self.W_enc = self._matrix(self.cfg.d_in, self.cfg.d_sae)
        self.b_gate = self._vector(self.cfg.d_sae)
        self.r_mag = self._vector(self.cfg.d_sae)
        self.b_mag = self._vector(self.cfg.d_sae)
        self.W_dec = self._matrix(self.cfg.d_sae, self.cfg.d_in)
        self.b_dec = self._vector(self.cfg.d_in)

    def initialize_weights_jumprelu(self) -> None:
        """The threshold, then the parameters of standard SAEs."""
        self.threshold = self._vector(self.cfg.d_sae)
        self.initialize_weights_basic()

    # -- the encoders under their 5.x names: every SAE has them all -------------------------------

    def encode_standard(self, x: Tensor) -> Tensor:
        """Encode as a standard (or topk) SAE, whatever the architecture."""
        return get_sae_class("standard").sae_class.encode(self, x)

    def encode_gated(self, x: Tensor) -> Tensor:
        """Encode as a gated SAE; needs its parameters."""
        return get_sae_class("gated").sae_class.encode(self, x)

    def encode_jumprelu(self, x: Tensor) -> Tensor:
        """Encode as a jumprelu SAE; needs its threshold."""
        return get_sae_class("jumprelu").sae_class.encode(self, x)


@contextmanager
def _disable_hooks(sae: SAE) -> Iterator[None]:
    """Swap the SAE's hook points for pass-throughs while inside."""
    with hooks_disabled(sae):
        yield
