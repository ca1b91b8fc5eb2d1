"""Gated SAE: one product decides which features fire, a rescaled one how strongly.

    c = x - b_dec,  gate = 1[c W_enc + b_gate > 0],  magnitude = relu(c (W_enc exp(r_mag)) + b_mag)
    f = gate * magnitude

Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders"
(arXiv:2404.16014), section 3. Loss (equation 8): mean squared error, an L1 term on
`pi = relu(c W_enc + b_gate)` weighted by decoder norms, and the squared error of
`pi W_dec + b_dec`. Unlike in the paper, where decoder rows have unit norm, decoder norms weigh the
L1 term. The paper's gate terms train the encoder alone, which they do here if the config says
`detach_auxiliary_decoder`; otherwise the decoder learns from both. It must be both or neither: with
the L1 term alone decoder rows would only shrink, and gates open wider than biases can close them.
Encoder and losses see the same processed input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.autograd import Decoded, sparse_decode_with_norms
from sae_lens.registry import register_sae_class, register_sae_training_class
from sae_lens.saes.activation_fns import ZERO_BELOW_ZERO
from sae_lens.saes.base import SAE
from sae_lens.saes.config import ArchitectureSAEConfig, ArchitectureTrainingSAEConfig
from sae_lens.saes.losses import reconstruction_error
from sae_lens.saes.sparse_training import centred, entries_above, scaled_for_decoding
from sae_lens.saes.sparsity_losses import SparsityLossName, SparsityTerm, sparsity_term_of
from sae_lens.saes.training import TrainingEncoding, TrainingSAE, TrainStepInput
from sae_lens.saes.training_step import SparseTrainingDecoding, SparseTrainingEncoding


@dataclass(kw_only=True)
class GatedSAEConfig(ArchitectureSAEConfig):
    """Config of a `GatedSAE`."""

    architecture: str = "gated"


@dataclass(kw_only=True)
class GatedTrainingSAEConfig(ArchitectureTrainingSAEConfig):
    """Config of a `GatedTrainingSAE`.

    Attributes:
        l1_coefficient: weight of the sparsity term.
        l1_warm_up_steps: steps over which the weight rises from 0, or a share of all in [0, 1].
        lp_norm: p of the sparsity term's p-norm, on the gate's activations.
        detach_auxiliary_decoder: the gate's reconstruction and sparsity train the encoder alone,
            as in the paper; recommended, but not the default, which is what released SAEs were
            trained with.
        sparsity_loss: "power" (the p-norm), "tanh" or "tanh-quad" (see `sparsity_losses.py`).
        tanh_stretch: c in the tanh terms.
        frequency_scale: firing frequency at which tanh-quad doubles the price.
    """

    architecture: str = "gated"
    l1_warm_up_steps: int | float = 0
    lp_norm: float = 1.0
    detach_auxiliary_decoder: bool = False
    sparsity_loss: SparsityLossName = "power"
    tanh_stretch: float = 4.0
    frequency_scale: float = 0.01

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        sparsity_term_of(self)


class GatedSAE(SAE):
    """See the module's text."""

    architecture = "gated"
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    def initialize_weights(self) -> None:
        """`W_enc`, `b_gate`, `r_mag`, `b_mag`, `W_dec`, `b_dec`."""
        self.initialize_weights_gated()

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, [..., d_in] to [..., d_sae]."""
        return GatedSAE.gate_and_magnitude(self, self.process_sae_in(x))[0]

    def gate_and_magnitude(self, centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, magnitude pre-activations, and gate pre-activations of a processed input."""
        product = centred @ self.W_enc
        gate_pre = product + self.b_gate
        # scaling the columns of W_enc scales those of the product: no second product is needed
        magnitude_pre = self.hook_sae_acts_pre(product * self.r_mag.exp() + self.b_mag)
        features = (gate_pre > 0).to(self.dtype) * self.activation_fn(magnitude_pre)
        return self.hook_sae_acts_post(features), magnitude_pre, gate_pre

    def fold_W_dec_norm(self) -> None:
        """Unit decoder rows; both biases scale, `r_mag` stays (it is an exponent)."""
        self._fold_decoder_norms(self.b_gate.data, self.b_mag.data)


class GatedTrainingSAE(TrainingSAE, GatedSAE):
    """See the module's text."""

    coefficient_name = "l1"

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, as in inference."""
        return GatedSAE.encode(self, x)

    def encode_for_training(self, x: Tensor) -> TrainingEncoding:
        """Features, magnitude pre-activations, and what the gate's losses need."""
        centred = self.process_sae_in(x)
        features, magnitude_pre, gate_pre = GatedSAE.gate_and_magnitude(self, centred)
        return TrainingEncoding(features, magnitude_pre, centred, gate_pre)

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """`l1_loss` of the gate, and `auxiliary_reconstruction_loss` from the gate alone."""
        centred, gate_pre = encoding.processed_in, encoding.gate_pre
        assert centred is not None and gate_pre is not None
        gate_acts = torch.relu(gate_pre)
        # in the space of the processed input, where b_dec was (or was not) subtracted
        target = centred + self.b_dec if self.cfg.apply_b_dec_to_input else centred
        W_dec, b_dec, norms = self.W_dec, self.b_dec, self.decoder_norms()
        if self._detaches_decoder:
            W_dec, b_dec, norms = W_dec.detach(), b_dec.detach(), norms.detach()
        l1 = self.sparsity_term().of(gate_acts * norms, step.coefficient("l1"))
        recons = gate_acts @ W_dec + b_dec
        auxiliary = reconstruction_error(recons, target)
        return {
            "l1_loss": l1,
            "auxiliary_reconstruction_loss": auxiliary,
        }

    def has_sparse_form(self) -> bool:
        """With elementwise activations, and a sum in the loss."""
        return type(self.activation_fn) in ZERO_BELOW_ZERO and self.sparsity_term().has_sparse_form

    def sparsity_term(self) -> SparsityTerm:
        """The term of the gate's activations: L1 in the v5 form, else that of the config."""
        return sparsity_term_of(self.cfg) if self.form == "v6" else SparsityTerm()

    @property
    def _detaches_decoder(self) -> bool:
        return bool(getattr(self.cfg, "detach_auxiliary_decoder", False))

    def needs_decoder_norms(self) -> bool:
        """They weigh the gate's L1 term."""
        return True

    def sparse_decode(self, values: Tensor, active: ActiveSet) -> Decoded:
        """Reconstructions by features and by the gate; the latter need not train the decoder."""
        n_training = 1 if self._detaches_decoder else None
        return sparse_decode_with_norms(
            values, self.W_dec, active, self._workspace, with_norms=True, n_training=n_training
        )

    def count_active(self, encoding: TrainingEncoding) -> Tensor:
        """Open gates, whether the magnitude is positive or not."""
        assert encoding.gate_pre is not None
        return (encoding.gate_pre > 0).sum()

    def hidden_pre_of_features(self, x: Tensor, features: Tensor) -> Tensor:
        """Pre-activations of the gate."""
        return centred(self, x) @ self.W_enc[:, features] + self.b_gate[features]

    def sparse_encode_for_training(self, x: Tensor) -> SparseTrainingEncoding:
        """Entries with an open gate, which is where either path has a gradient."""
        active, product = entries_above(self, x, None, -self.b_gate.detach())
        gate_acts = torch.relu(product + self.b_gate.index_select(0, active.cols))
        magnitude_pre = product * self.r_mag.exp().index_select(
            0, active.cols
        ) + self.b_mag.index_select(0, active.cols)
        features = self.activation_fn(magnitude_pre)
        if active.count is not None:  # then there may be entries with a closed gate among them
            features = features * (gate_acts > 0)
        decoded = scaled_for_decoding(self, features, active.cols)
        return SparseTrainingEncoding(active, features, magnitude_pre, decoded, gate_acts)

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """As `auxiliary_losses`."""
        gate_acts, norms = encoding.gate_values, decoding.decoder_norms
        assert gate_acts is not None and norms is not None and decoding.gate_recons is not None
        active, b_dec = encoding.active, self.b_dec
        if self._detaches_decoder:
            norms, b_dec = norms.detach(), b_dec.detach()
        weighted = gate_acts * norms.index_select(0, active.cols)
        l1 = self.sparsity_term().of_entries(weighted, active, step.coefficient("l1"))
        gate_recons = decoding.gate_recons + b_dec
        return {
            "l1_loss": l1,
            "auxiliary_reconstruction_loss": reconstruction_error(
                gate_recons, decoding.processed_in
            ),
        }


register_sae_class("gated", GatedSAE, GatedSAEConfig)
register_sae_training_class("gated", GatedTrainingSAE, GatedTrainingSAEConfig)
