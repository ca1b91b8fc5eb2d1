"""JumpReLU transcoders: a transcoder whose features have thresholds, as Gemma Scope publishes them.

    h = x W_enc + b_enc,  f = relu(h) 1[h > theta],  y' = f W_dec + b_dec (+ x W_skip^T)

See `transcoder.py` and `jumprelu.py` for the two halves.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sae_lens.registry import register_sae_class
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig


@dataclass(kw_only=True)
class JumpReLUTranscoderConfig(TranscoderConfig):
    """Config of a `JumpReLUTranscoder`."""

    architecture: str = "jumprelu_transcoder"


@dataclass(kw_only=True)
class JumpReLUSkipTranscoderConfig(TranscoderConfig):
    """Config of a `JumpReLUSkipTranscoder`."""

    architecture: str = "jumprelu_skip_transcoder"


class JumpReLUTranscoder(Transcoder):
    """See the module's text."""

    architecture = "jumprelu_transcoder"
    threshold: nn.Parameter

    def initialize_weights(self) -> None:
        """`threshold`, then the transcoder's parameters."""
        self.threshold = self._vector(self.cfg.d_sae)
        super().initialize_weights()

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, [..., d_in] to [..., d_sae]."""
        hidden_pre = self.hook_sae_acts_pre(self.linear_encode(self.process_sae_in(x)))
        above = (hidden_pre > self.threshold).to(hidden_pre.dtype)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre) * above)

    def fold_W_dec_norm(self) -> None:
        """Unit decoder rows; bias and thresholds scale with the encoder."""
        self._fold_decoder_norms(self.b_enc.data, self.threshold.data)


class JumpReLUSkipTranscoder(JumpReLUTranscoder):
    """See the module's text."""

    architecture = "jumprelu_skip_transcoder"
    has_skip = True


register_sae_class("jumprelu_transcoder", JumpReLUTranscoder, JumpReLUTranscoderConfig)
register_sae_class("jumprelu_skip_transcoder", JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig)
