"""Transcoders: from one activation (an MLP's input) to another (its output).

    f = relu(x W_enc + b_enc),  y' = f W_dec + b_dec            (transcoder)
                                y' = f W_dec + b_dec + x W_skip^T   (skip transcoder)

Dunefsky, Chlenski & Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits"
(arXiv:2406.11944); Paulo, Shabalin & Belrose 2025, "Transcoders Beat Sparse Autoencoders for
Interpretability" (arXiv:2501.18823) for the skip connection. `b_dec` belongs to the output, so it
is never subtracted from the input, and the input's normalisation is not undone on the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sae_lens.registry import register_sae_class
from sae_lens.saes.base import SAE
from sae_lens.saes.config import ArchitectureSAEConfig


@dataclass(kw_only=True)
class TranscoderConfig(ArchitectureSAEConfig):
    """Config of a `Transcoder`.

    Attributes:
        d_out: width of the output.
        apply_b_dec_to_input: must be False.
    """

    architecture: str = "transcoder"
    apply_b_dec_to_input: bool = False
    d_out: int = 768

    nested_keys: ClassVar[tuple[str, ...]] = ("d_out",)

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        if self.apply_b_dec_to_input:
            raise ValueError(
                "A transcoder's b_dec is a bias of its output: apply_b_dec_to_input must be given "
                "as False."
            )


@dataclass(kw_only=True)
class SkipTranscoderConfig(TranscoderConfig):
    """Config of a `SkipTranscoder`."""

    architecture: str = "skip_transcoder"


class Transcoder(SAE):
    """See the module's text."""

    architecture = "transcoder"

    def __init__(self, cfg: Any, use_error_term: bool = False):
        if use_error_term:
            raise ValueError(
                "A transcoder's output is not a reconstruction of its input, so there is no error "
                "term to add."
            )
        super().__init__(cfg, use_error_term)

    def initialize_weights(self) -> None:
        """`b_enc`, `W_dec` [d_sae, d_out], `W_enc`, `b_dec` [d_out]."""
        self.b_enc = self._vector(self.cfg.d_sae)
        self.W_dec = self._matrix(self.cfg.d_sae, self.cfg.d_out)
        self.W_enc = self._matrix(self.cfg.d_in, self.cfg.d_sae)
        self.b_dec = self._vector(self.cfg.d_out)

    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        """Cast, flatten heads, fire `hook_sae_input`, normalise."""
        x = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.dtype)))
        return self.run_time_activation_norm_fn_in(x)

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, [..., d_in] to [..., d_sae]."""
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre))

    def decode(self, feature_acts: Tensor) -> Tensor:
        """The output activation [..., d_out]; nothing about the input is undone."""
        scaled = self.apply_finetuning_scaling_factor(feature_acts)
        return self.hook_sae_recons(scaled @ self.W_dec + self.b_dec)

    def forward(self, x: Tensor) -> Tensor:
        """The output activation for the input activation `x`."""
        return self.hook_sae_output(self.decode(self.encode(x)))


class SkipConnection(SAE):
    """The part of skip transcoders that is more than a transcoder."""

    W_skip: nn.Parameter

    def initialize_weights(self) -> None:
        """The transcoder's parameters, then `W_skip` [d_out, d_in] of zeros."""
        super().initialize_weights()
        self.W_skip = nn.Parameter(self.W_dec.new_zeros(self.cfg.d_out, self.cfg.d_in))

    def forward(self, x: Tensor) -> Tensor:
        """The transcoder's output plus `x W_skip^T`."""
        recons = self.decode(self.encode(x))
        flat = self.reshape_fn_in(x.to(self.dtype))
        return self.hook_sae_output(recons + flat @ self.W_skip.T)


class SkipTranscoder(SkipConnection, Transcoder):
    """See the module's text."""

    architecture = "skip_transcoder"


register_sae_class("transcoder", Transcoder, TranscoderConfig)
register_sae_class("skip_transcoder", SkipTranscoder, SkipTranscoderConfig)
