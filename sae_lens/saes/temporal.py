"""Temporal SAE: what the context predicts is split from what is new at a position.

Lubana, Rager et al. 2025, "Priors in Time: Missing Inductive Biases for Language Model
Interpretability" (arXiv:2511.01836). With x scaled and centred, L = 1 / (4 d_in) and r = x:

    per attention layer:  z = relu(L r W_enc)
                          p = relu(attention(keys and values: z of earlier positions, queries: z))
                          s = (p W_dec . r) / (|p W_dec| + 1e-6)^2
                          predicted += s p,  r -= s p W_dec
    novel = relu(L r W_enc), of which the k largest are kept ("topk")
    x' = (novel + predicted) W_dec + b_dec, scaled back

`encode` gives the novel codes. With tied weights `W_enc` is `W_dec^T`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sae_lens.registry import register_sae_class
from sae_lens.saes.activation_fns import TopK
from sae_lens.saes.base import SAE
from sae_lens.saes.config import ArchitectureSAEConfig
from sae_lens.saes.hooks import has_active_hooks, hooks_disabled
from sae_lens.saes.weights import are_without_values

_EPSILON = 1e-6


@dataclass(kw_only=True)
class TemporalSAEConfig(ArchitectureSAEConfig):
    """Config of a `TemporalSAE`.

    Attributes:
        n_heads: attention heads.
        n_attn_layers: attention layers.
        bottleneck_factor: keys and queries have width d_sae / bottleneck_factor.
        sae_diff_type: "topk" keeps the `kval_topk` largest novel codes, "relu" all positive ones.
        kval_topk: that number; None keeps all.
        tied_weights: whether the encoder is the decoder's transpose.
        activation_normalization_factor: activations are multiplied by this.
    """

    architecture: str = "temporal"
    normalize_activations: str = "constant_scalar_rescale"
    n_heads: int = 8
    n_attn_layers: int = 1
    bottleneck_factor: int = 64
    sae_diff_type: Literal["topk", "relu"] = "topk"
    kval_topk: int | None = None
    tied_weights: bool = True
    activation_normalization_factor: float = 1.0

    nested_keys: ClassVar[tuple[str, ...]] = (
        "n_heads",
        "n_attn_layers",
        "bottleneck_factor",
        "sae_diff_type",
        "kval_topk",
        "tied_weights",
        "activation_normalization_factor",
    )


class TemporalCodes(NamedTuple):
    """The two parts of a code, each [batch, pos, d_sae]."""

    novel: Tensor
    predicted: Tensor


class ContextAttention(nn.Module):
    """Causal attention over codes: keys and values from the context, queries from the target."""

    def __init__(
        self,
        d_sae: int,
        n_heads: int,
        bottleneck_factor: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        narrow = d_sae // bottleneck_factor
        if narrow == 0 or narrow % n_heads or d_sae % n_heads:
            raise ValueError(
                f"d_sae {d_sae} and d_sae / bottleneck_factor ({d_sae} / {bottleneck_factor}) must "
                f"both be multiples of n_heads, {n_heads}."
            )
        self.n_heads = n_heads
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        self.k_ctx = nn.Linear(d_sae, narrow, **place)
        self.q_target = nn.Linear(d_sae, narrow, **place)
        self.v_ctx = nn.Linear(d_sae, d_sae, **place)
        self.c_proj = nn.Linear(d_sae, d_sae, **place)

    def forward(
        self, context: Float[Tensor, "batch pos d_sae"], target: Float[Tensor, "batch pos d_sae"]
    ) -> Float[Tensor, "batch pos d_sae"]:
        """What the context says about each position of the target."""
        keys, queries, values = (
            self._heads(layer(codes))
            for layer, codes in (
                (self.k_ctx, context),
                (self.q_target, target),
                (self.v_ctx, context),
            )
        )
        mixed = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [batch, head, pos, width]


class TemporalSAE(SAE):
    """See the module's text."""

    architecture = "temporal"
    attn_layers: nn.ModuleList

    def initialize_weights(self) -> None:
        """`W_dec`, `b_dec`, an untied `W_enc`, and the attention layers."""
        cfg = self.cfg
        if cfg.sae_diff_type not in ("topk", "relu"):
            raise ValueError(f"sae_diff_type is {cfg.sae_diff_type!r}; allowed are topk and relu.")
        self.W_dec = self._matrix(cfg.d_sae, cfg.d_in)
        self.b_dec = self._vector(cfg.d_in)
        if not cfg.tied_weights:
            self.W_enc = self._matrix(cfg.d_in, cfg.d_sae)
        device = torch.device("meta") if are_without_values() else self.device
        self.attn_layers = nn.ModuleList(
            ContextAttention(cfg.d_sae, cfg.n_heads, cfg.bottleneck_factor, self.dtype, device)
            for _ in range(cfg.n_attn_layers)
        )

    def _make_activation_fn(self) -> nn.Module:
        if self.cfg.sae_diff_type == "topk" and self.cfg.kval_topk is not None:
            return TopK(self.cfg.kval_topk)
        return nn.ReLU()

    @property
    def encoder(self) -> Tensor:
        """The encoder [d_in, d_sae], which with tied weights is the decoder's transpose."""
        return self.W_dec.T if self.cfg.tied_weights else self.W_enc

    def run_time_activation_norm_fn_in(self, x: Tensor) -> Tensor:
        """Times the factor, or as every SAE normalises."""
        if self.cfg.normalize_activations == "constant_scalar_rescale":
            return x * self.cfg.activation_normalization_factor
        return super().run_time_activation_norm_fn_in(x)

    def run_time_activation_norm_fn_out(self, x: Tensor) -> Tensor:
        """Over the factor, or as every SAE undoes it."""
        if self.cfg.normalize_activations == "constant_scalar_rescale":
            return x / self.cfg.activation_normalization_factor
        return super().run_time_activation_norm_fn_out(x)

    def encode_with_predictions(self, x: Float[Tensor, "batch pos d_in"]) -> TemporalCodes:
        """Novel and predicted codes. Positions matter, so `x` needs three dimensions.

        Raises:
            ValueError: for an input of other dimensions.
        """
        residual = self.process_sae_in(x)
        if residual.dim() != 3:
            raise ValueError(
                f"A temporal SAE needs activations [batch, pos, d_in], not {list(x.shape)}."
            )
        scale = 1.0 / (4 * self.cfg.d_in)
        predicted = residual.new_zeros(*residual.shape[:-1], self.cfg.d_sae)
        for attention in self.attn_layers:
            codes = torch.relu(scale * (residual @ self.encoder))
            context = torch.cat([torch.zeros_like(codes[:, :1]), codes[:, :-1]], dim=1)
            guess = torch.relu(attention(context, codes))
            direction = guess @ self.W_dec
            size = direction.norm(dim=-1, keepdim=True) + _EPSILON
            along = (direction * residual).sum(dim=-1, keepdim=True) / size.square()
            predicted = predicted + guess * along
            residual = residual - direction * along
        hidden_pre = self.hook_sae_acts_pre(scale * (residual @ self.encoder))
        return TemporalCodes(self.hook_sae_acts_post(self.activation_fn(hidden_pre)), predicted)

    def encode(self, x: Tensor) -> Tensor:
        """The novel codes [batch, pos, d_sae] of `x`, [batch, pos, d_in]."""
        return self.encode_with_predictions(x).novel

    def decode(self, feature_acts: Tensor) -> Tensor:
        """What the given codes say. Without the predicted ones that is not a reconstruction."""
        warnings.warn(
            "decode() of a temporal SAE leaves out what the context predicts; call the SAE itself "
            "for a reconstruction.",
            UserWarning,
            stacklevel=2,
        )
        return self._decode(feature_acts)

    def _decode(self, codes: Tensor) -> Tensor:
        recons = self.apply_finetuning_scaling_factor(codes) @ self.W_dec
        if not self.cfg.tied_weights or self.cfg.apply_b_dec_to_input:
            recons = recons + self.b_dec
        recons = self.run_time_activation_norm_fn_out(self.hook_sae_recons(recons))
        return self.reshape_fn_out(recons, self.d_head)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The reconstruction from novel and predicted codes."""
        codes = self.encode_with_predictions(x)
        return self._decode(codes.novel + codes.predicted)

    def forward(self, x: Tensor) -> Tensor:
        """`reconstruct`, and with the error term what that misses."""
        out = self.reconstruct(x)
        if self.use_error_term:
            with torch.no_grad():
                error = x.to(out.dtype) - self._clean_reconstruction(x, out)
            out = out + self.hook_sae_error(error)
        return self.hook_sae_output(out)

    def _clean_reconstruction(self, x: Tensor, out: Tensor) -> Tensor:
        if not has_active_hooks(self):
            return out
        with hooks_disabled(self):
            return self.reconstruct(x)

    def fold_W_dec_norm(self) -> None:
        """Not possible: attention reads the codes, so their sizes matter.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "The attention layers of a temporal SAE read its codes; decoder norms cannot be folded."
        )

    def fold_activation_norm_scaling_factor(self, activation_norm_scaling_factor: float) -> None:
        """The factor by which activations are scaled grows; the weights stay as they are."""
        scales = self.cfg.normalize_activations == "constant_scalar_rescale"
        own = self.cfg.activation_normalization_factor if scales else 1.0
        self.cfg.activation_normalization_factor = own * float(activation_norm_scaling_factor)
        self.cfg.normalize_activations = "constant_scalar_rescale"


register_sae_class("temporal", TemporalSAE, TemporalSAEConfig)
