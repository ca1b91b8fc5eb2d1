"""Crosscoders: one set of features for several hooks of a model, or for several models.

    f = act(sum_h x_h W_enc[h] + b_enc),  x_h' = f W_dec[:, h] + b_dec[h]

Lindsey, Templeton, Marcus, Conerly, Batson & Olah 2024, "Sparse Crosscoders for Cross-Layer
Features and Model Diffing" (Transformer Circuits Thread). What a feature costs, selects by, or is
folded by is the sum over hooks of its decoder norms, `sum_h |W_dec[i, h]|`: with the L1 norm of
norms, a feature that is in one hook only is not cheaper than two that are in one hook each, which
keeps what is exclusive apart. `decoder_norm="l2"` takes the L2 norm of all its decoders instead.

Files hold `W_enc` [hooks, d_in, d_sae], `W_dec` [d_sae, hooks, d_in] and `b_dec` [hooks, d_in], the
layout of published crosscoders; in memory, hooks and width are one axis, as in the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.registry import register_sae_class
from sae_lens.saes.config import ArchitectureSAEConfig
from sae_lens.saes.jumprelu import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.several_hooks import HookSite, SeveralHooks, check_names, check_settings
from sae_lens.saes.standard import StandardSAE
from sae_lens.saes.topk import TopKSAE, TopKSAEConfig

CROSSCODER_KEYS = ("hook_names", "model_names", "decoder_norm")


@dataclass(kw_only=True)
class CrosscoderFields:
    """What the configs of all crosscoders have besides those of the SAE of the same name.

    Attributes:
        hook_names: the hooks, all of the width d_in.
        model_names: the models whose hooks they are, when it is not the run's model alone; the
            first is the run's. The sites of a crosscoder are each model's hooks in turn.
        decoder_norm: how the norms of a feature's decoders become one: "sum" or "l2".
        apply_b_dec_to_input: must be False.
    """

    hook_names: list[str] = field(default_factory=list)
    model_names: list[str] = field(default_factory=list)
    decoder_norm: Literal["sum", "l2"] = "sum"
    apply_b_dec_to_input: bool = False

    keys_of_hooks: ClassVar[tuple[str, ...]] = CROSSCODER_KEYS
    nested_keys: ClassVar[tuple[str, ...]] = CROSSCODER_KEYS

    def __post_init__(  # pyright: ignore[reportGeneralTypeIssues]  (they are the other base's)
        self, metadata: Any, reshape_activations: str | None
    ) -> None:
        check_names("hook_names", self.hook_names)
        check_names("model_names", self.model_names)
        self.hook_names, self.model_names = list(self.hook_names), list(self.model_names)
        if len(self.sites) < 2:
            raise ValueError(
                f"A crosscoder needs at least two hooks, or one hook of two models: hook_names is "
                f"{self.hook_names}, model_names {self.model_names}."
            )
        if self.decoder_norm not in ("sum", "l2"):
            raise ValueError(f"decoder_norm is {self.decoder_norm!r}; allowed are 'sum' and 'l2'.")
        self.hook_name: str = getattr(self, "hook_name", "") or self.hook_names[0]
        super().__post_init__(metadata, reshape_activations)  # type: ignore[misc]
        if self.model_names and not self.model_name:
            self.model_name: str | None = self.model_names[0]
        check_settings(self, "crosscoder")

    @property
    def sites(self) -> tuple[HookSite, ...]:
        """All hooks of all models, in the order of a row."""
        n_models = max(1, len(self.model_names))
        return tuple(HookSite(m, name) for m in range(n_models) for name in self.hook_names)


class CrosscoderMaps(SeveralHooks):
    """Parameters, norms and files of all crosscoders."""

    def initialize_weights_basic(self) -> None:
        """`b_enc`, `W_dec` [d_sae, hooks * d_in], `W_enc`, `b_dec` [hooks * d_in]."""
        width, d_sae = self.n_hooks * self.d_in_of_hook, self._layout.d_sae
        self.b_enc = self._vector(d_sae)
        self.W_dec = self._matrix(d_sae, width)
        self.W_enc = self._matrix(width, d_sae)
        self.b_dec = self._vector(width)

    @property
    def encoders(self) -> Float[Tensor, "hooks d_in d_sae"]:
        """The encoder of each hook: a view of `W_enc`."""
        return self.W_enc.unflatten(0, (self.n_hooks, -1))

    @property
    def decoders(self) -> Float[Tensor, "d_sae hooks d_in"]:
        """Each feature's decoder for each hook: a view of `W_dec`."""
        return self.W_dec.unflatten(1, (self.n_hooks, -1))

    def decoder_norms_by_hook(self) -> Float[Tensor, "d_sae hooks"]:
        """L2 norm of each feature's decoder for each hook."""
        return self.decoders.norm(dim=-1)

    def relative_decoder_norms(self) -> Float[Tensor, "d_sae hooks"]:
        """Which share of a feature's decoder norms each hook has; 0 for features without any.

        With two models, a share near 0 or 1 means that a feature is exclusive to one of them.
        """
        norms = self.decoder_norms_by_hook()
        return norms / norms.sum(dim=-1, keepdim=True).clamp(min=1e-30)

    def decoder_norms(self, features: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """The norms over all hooks, as one number for each feature."""
        W_dec = self.W_dec if features is None else self.W_dec[features]
        if self._layout.decoder_norm == "l2":
            return W_dec.norm(dim=-1)
        return W_dec.unflatten(1, (self.n_hooks, -1)).norm(dim=-1).sum(dim=-1)

    def _fold_scale(self, factor: Tensor) -> None:
        factor = factor.expand(len(self.b_dec))
        self.W_enc.data.mul_(factor.unsqueeze(1))
        self.W_dec.data.div_(factor)
        self.b_dec.data.div_(factor)

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Files have an axis for the hooks."""
        hooks = (self.n_hooks, self.d_in_of_hook)
        for name, axis in (("W_enc", 0), ("W_dec", 1), ("b_dec", 0)):
            state_dict[name] = state_dict[name].unflatten(axis, hooks)

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """In memory, hooks and width are one axis."""
        super().process_state_dict_for_loading(state_dict)
        for name, axis in (("W_enc", 0), ("W_dec", 1), ("b_dec", 0)):
            tensor = state_dict.get(name)
            if tensor is not None and tensor.shape[axis : axis + 2] == (
                self.n_hooks,
                self.d_in_of_hook,
            ):
                state_dict[name] = tensor.flatten(axis, axis + 1)


@dataclass(kw_only=True)
class CrosscoderConfig(CrosscoderFields, ArchitectureSAEConfig):
    """Config of a `Crosscoder`."""

    architecture: str = "crosscoder"


@dataclass(kw_only=True)
class JumpReLUCrosscoderConfig(CrosscoderFields, JumpReLUSAEConfig):
    """Config of a `JumpReLUCrosscoder`."""

    architecture: str = "jumprelu_crosscoder"


@dataclass(kw_only=True)
class TopKCrosscoderConfig(CrosscoderFields, TopKSAEConfig):
    """Config of a `TopKCrosscoder`."""

    architecture: str = "topk_crosscoder"

    nested_keys: ClassVar[tuple[str, ...]] = (*TopKSAEConfig.nested_keys, *CROSSCODER_KEYS)


class Crosscoder(CrosscoderMaps, StandardSAE):
    """Features by ReLU."""

    architecture = "crosscoder"


class JumpReLUCrosscoder(CrosscoderMaps, JumpReLUSAE):
    """Features by thresholds."""

    architecture = "jumprelu_crosscoder"


class TopKCrosscoder(CrosscoderMaps, TopKSAE):
    """The k largest activations of each token."""

    architecture = "topk_crosscoder"


register_sae_class("crosscoder", Crosscoder, CrosscoderConfig)
register_sae_class("jumprelu_crosscoder", JumpReLUCrosscoder, JumpReLUCrosscoderConfig)
register_sae_class("topk_crosscoder", TopKCrosscoder, TopKCrosscoderConfig)

__all__ = [
    "Crosscoder",
    "CrosscoderConfig",
    "CrosscoderFields",
    "CrosscoderMaps",
    "JumpReLUCrosscoder",
    "JumpReLUCrosscoderConfig",
    "TopKCrosscoder",
    "TopKCrosscoderConfig",
]
