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


class TranscoderMaps(SAE):
    """What every transcoder, trained or in training, has that an SAE has not."""

    #: whether there is a skip connection
    has_skip: bool = False
    #: formulas that the sparse form of a training step uses as well
    in_both_forms = ("add_bypass", "run_time_activation_norm_fn_out", "reshape_fn_out")
    W_skip: nn.Parameter

    def initialize_weights_basic(self) -> None:
        """`b_enc`, `W_dec` [d_sae, d_out], `W_enc`, `b_dec` [d_out], and `W_skip` [d_out, d_in]."""
        cfg = getattr(self, "_training_cfg", self.cfg)
        self.b_enc = self._vector(cfg.d_sae)
        self.W_dec = self._matrix(cfg.d_sae, cfg.d_out)
        self.W_enc = self._matrix(cfg.d_in, cfg.d_sae)
        self.b_dec = self._vector(cfg.d_out)
        if self.has_skip:
            self.W_skip = nn.Parameter(self.W_dec.new_zeros(cfg.d_out, cfg.d_in))

    def run_time_activation_norm_fn_out(self, x: Tensor) -> Tensor:
        """Nothing: what was done to the input has no counterpart on another activation."""
        return x

    def reshape_fn_out(self, x: Tensor, d_head: int | None) -> Tensor:
        """Nothing, likewise."""
        del d_head
        return x

    def add_bypass(self, recons: Tensor, x: Tensor) -> Tensor:
        """What was decoded plus the skip connection's part, of the input as it came."""
        if not self.has_skip:
            return recons
        return recons + self.reshape_fn_in(x.to(self.dtype)) @ self.W_skip.T

    def forward(self, x: Tensor) -> Tensor:
        """The output activation for the input activation `x`, [..., d_in] to [..., d_out]."""
        recons = self.decode(self._encode_for_forward(x))
        return self.hook_sae_output(self.add_bypass(recons, x))


class Transcoder(TranscoderMaps):
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
        """As `initialize_weights_basic`."""
        self.initialize_weights_basic()

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, [..., d_in] to [..., d_sae]."""
        hidden_pre = self.hook_sae_acts_pre(self.linear_encode(self.process_sae_in(x)))
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre))


class SkipTranscoder(Transcoder):
    """See the module's text."""

    architecture = "skip_transcoder"
    has_skip = True


register_sae_class("transcoder", Transcoder, TranscoderConfig)
register_sae_class("skip_transcoder", SkipTranscoder, SkipTranscoderConfig)
