"""Standard SAE: `f = relu((x - b_dec) W_enc + b_enc)`, `x' = f W_dec + b_dec`.

Bricken et al. 2023, "Towards Monosemanticity". Loss: mean squared error plus `lambda ||z||_p`. In
the v5 form `z` is `f`, or `f` times the decoder norms on request; in the v6 form always the latter
(Conerly et al. 2024, "Update on how we train SAEs"). The decoder norm carries a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_lens.registry import register_sae_class, register_sae_training_class
from sae_lens.saes.activation_fns import ZERO_BELOW_ZERO
from sae_lens.saes.base import SAE
from sae_lens.saes.config import ArchitectureSAEConfig, ArchitectureTrainingSAEConfig
from sae_lens.saes.dead_features import dead_features_of
from sae_lens.saes.losses import ghost_out_loss
from sae_lens.saes.sparse_training import (
    hidden_pre_of,
    scaled_for_decoding,
)
from sae_lens.saes.sparsity_losses import SparsityLossName, SparsityTerm, sparsity_term_of
from sae_lens.saes.training import TrainingEncoding, TrainingSAE, TrainStepInput
from sae_lens.saes.training_step import SparseTrainingDecoding, SparseTrainingEncoding


@dataclass(kw_only=True)
class StandardSAEConfig(ArchitectureSAEConfig):
    """Config of a `StandardSAE`."""

    architecture: str = "standard"


@dataclass(kw_only=True)
class StandardTrainingSAEConfig(ArchitectureTrainingSAEConfig):
    """Config of a `StandardTrainingSAE`.

    Attributes:
        l1_coefficient: weight of the sparsity term.
        lp_norm: p of its p-norm.
        l1_warm_up_steps: steps over which the weight rises from 0, or a share of all in [0, 1].
        sparsity_loss: "power" (the p-norm), "tanh" or "tanh-quad" (see `sparsity_losses.py`).
        tanh_stretch: c in the tanh terms.
        frequency_scale: firing frequency at which tanh-quad doubles the price.
    """

    architecture: str = "standard"
    lp_norm: float = 1.0
    l1_warm_up_steps: int | float = 0
    sparsity_loss: SparsityLossName = "power"
    tanh_stretch: float = 4.0
    frequency_scale: float = 0.01

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        sparsity_term_of(self)


class StandardSAE(SAE):
    """See the module's text."""

    architecture = "standard"

    def initialize_weights(self) -> None:
        """`b_enc`, `W_dec`, `W_enc`, `b_dec`."""
        self.initialize_weights_basic()

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, [..., d_in] to [..., d_sae]."""
        hidden_pre = self.hook_sae_acts_pre(self.linear_encode(self.process_sae_in(x)))
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre))


class StandardTrainingSAE(TrainingSAE, StandardSAE):
    """See the module's text."""

    coefficient_name = "l1"

    def encode(self, x: Tensor) -> Tensor:
        """Features by the training encoder, so with noise in training mode."""
        return self.encode_for_training(x).feature_acts

    def encode_for_training(self, x: Tensor) -> TrainingEncoding:
        """Features and noised pre-activations."""
        hidden_pre = self.add_noise(
            self.hook_sae_acts_pre(self.linear_encode(self.process_sae_in(x)))
        )
        return TrainingEncoding(self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre)

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """`l1_loss`, and `ghost_grad_loss` when asked for."""
        weighted = encoding.feature_acts
        if self.cfg.scale_sparsity_penalty_by_decoder_norm:
            weighted = weighted * self.decoder_norms()
        losses = {"l1_loss": self.sparsity_term().of(weighted, step.coefficient("l1"))}
        if self.cfg.use_ghost_grads and self.training and step.dead_neuron_mask is not None:
            losses["ghost_grad_loss"] = sae_out.new_zeros(())
            if step.most_dead != 0:
                losses["ghost_grad_loss"] = self.calculate_ghost_grad_loss(
                    x=step.sae_in,
                    sae_out=sae_out,
                    per_item_mse_loss=self.mse_loss_fn(sae_out, step.sae_in),
                    hidden_pre=encoding.hidden_pre,
                    dead_neuron_mask=step.dead_neuron_mask,
                )
        return losses

    def has_sparse_form(self) -> bool:
        """With an activation that is zero below zero, and a p-norm that is a sum of powers."""
        return type(self.activation_fn) in ZERO_BELOW_ZERO and self.sparsity_term().has_sparse_form

    def sparsity_term(self) -> SparsityTerm:
        """The term of the config."""
        return sparsity_term_of(self.cfg)

    def needs_decoder_norms(self) -> bool:
        """When they weigh the sparsity term."""
        return bool(self.cfg.scale_sparsity_penalty_by_decoder_norm)

    def sparse_encode_for_training(self, x: Tensor) -> SparseTrainingEncoding:
        """Entries with a positive pre-activation."""
        lower = torch.zeros_like(self.b_enc)
        active, hidden = self.entries_above(x, lower)
        features = self.activation_fn(hidden)
        decoded = scaled_for_decoding(self, features, active.cols)
        return SparseTrainingEncoding(active, features, hidden, decoded)

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """As `auxiliary_losses`; ghost gradients are dense over the dead features."""
        weighted = encoding.feature_values
        if decoding.decoder_norms is not None:
            weighted = weighted * decoding.decoder_norms.index_select(0, encoding.active.cols)
        term = self.sparsity_term()
        losses = {"l1_loss": term.of_entries(weighted, encoding.active, step.coefficient("l1"))}
        if self.cfg.use_ghost_grads and self.training and step.dead_neuron_mask is not None:
            sae_out = decoding.sae_out
            losses["ghost_grad_loss"] = sae_out.new_zeros(())
            dead = dead_features_of(step)
            if dead is not None:
                hidden_pre = hidden_pre_of(self, decoding.processed_in, dead.indices)
                ghost_acts = torch.exp(dead.only(hidden_pre, -torch.inf))
                loss = ghost_out_loss(
                    self.linear_decode_some(ghost_acts, dead.indices),
                    step.sae_in,
                    sae_out,
                    self.mse_loss_fn(sae_out, step.sae_in),
                    self.mse_loss_fn,
                )
                losses["ghost_grad_loss"] = dead.if_any(loss)
        return losses


register_sae_class("standard", StandardSAE, StandardSAEConfig)
register_sae_training_class("standard", StandardTrainingSAE, StandardTrainingSAEConfig)

__all__ = [
    "StandardSAE",
    "StandardSAEConfig",
    "StandardTrainingSAE",
    "StandardTrainingSAEConfig",
]
