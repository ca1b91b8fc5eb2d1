"""First values of an SAE that is to be trained, and its decoder's rows at a given norm."""

from __future__ import annotations

import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.saes.weights import remove_parallel_component_, unit_rows_

logger = logging.getLogger(__name__)


class InitialValues(nn.Module):
    """The part of a training SAE that sets weights from outside of the training pass."""

    cfg: Any
    form: str
    dtype: Any
    device: Any
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    @torch.no_grad()
    def initialize_weights_complex(self) -> None:
        """Decoder, then encoder, then unit rows, as the config asks."""
        if self.form == "v6":
            norm = self.cfg.decoder_init_norm
            if norm is not None:
                unit_rows_(self.W_dec.data, norm)
                self._encoder_from_decoder()
            return
        if self.cfg.decoder_orthogonal_init:
            transposed = torch.empty_like(self.W_dec.data.T.contiguous())
            self.W_dec.data = nn.init.orthogonal_(transposed).T.contiguous()
        elif self.cfg.decoder_heuristic_init:
            self.W_dec.data = torch.randn_like(self.W_dec.data)
            norm = getattr(self.cfg, "decoder_heuristic_init_norm", 0.1)
            self.initialize_decoder_norm_constant_norm(norm)
        if self.cfg.init_encoder_as_decoder_transpose:
            self._encoder_from_decoder()
        else:
            nn.init.kaiming_uniform_(self.W_enc.data)
        if self.cfg.normalize_sae_decoder:
            self.set_decoder_norm_to_unit_norm()

    def _encoder_from_decoder(self) -> None:
        self.W_enc.data = self.W_dec.data.T.clone().contiguous()

    @torch.no_grad()
    def initialize_b_dec_with_precalculated(self, origin: Float[Tensor, " d_in"]) -> None:
        """Set the decoder bias to a copy of `origin`."""
        self.b_dec.data = origin.detach().clone().to(dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def initialize_b_dec_with_mean(self, all_activations: Float[Tensor, "n d_in"]) -> None:
        """Set the decoder bias to the mean activation."""
        previous = self.b_dec.data.clone().to(all_activations.device)
        mean = all_activations.mean(dim=0)
        logger.info("Setting b_dec to the mean of %d activations.", len(all_activations))
        if logger.isEnabledFor(logging.DEBUG):
            before = (all_activations - previous).norm(dim=-1).median().item()
            after = (all_activations - mean).norm(dim=-1).median().item()
            logger.debug("Median distance to b_dec: %.4f before, %.4f after.", before, after)
        self.initialize_b_dec_with_precalculated(mean)

    @torch.no_grad()
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Divide the decoder rows by their L2 norm, in place."""
        unit_rows_(self.W_dec.data)

    @torch.no_grad()
    def initialize_decoder_norm_constant_norm(self, norm: float = 0.1) -> None:
        """Give every decoder row the L2 norm `norm`, in place."""
        unit_rows_(self.W_dec.data, norm)

    @torch.no_grad()
    def remove_gradient_parallel_to_decoder_directions(self) -> None:
        """Subtract from each row of `W_dec.grad` its part along the (unit) decoder row."""
        assert self.W_dec.grad is not None, "there is no decoder gradient yet: call backward first"
        remove_parallel_component_(self.W_dec.grad, self.W_dec.data)
