"""JumpReLU SAE: `f = relu(h) 1[h > theta]` with a learned threshold per feature.

Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
Autoencoders" (arXiv:2407.14435), sections 3 and 4. Thresholds learn through pseudo-gradients
(`activation_fns.py`). Loss in the v5 form: mean squared error plus `lambda L0`, with
`log_threshold` as the parameter. In the v6 form `threshold` itself is the parameter (float32, kept
at or above 0) and the sparsity term is one of:

- "step": `lambda L0`;
- "tanh": `lambda sum_i tanh(c f_i ||w_i||)`, with a pre-activation loss for dead features
  (Conerly et al. 2025, "Dictionary Learning Optimization Techniques", Circuits Updates);
- "power", "tanh-quad": those of `sparsity_losses.py`;
- "quadratic": `lambda (2/T) (L0 - T)^2`, which steers towards a target L0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.kernels.precision import sum_dtype
from sae_lens.registry import register_sae_class, register_sae_training_class
from sae_lens.saes.activation_fns import JumpReLU, JumpReLUThroughInput, Step, StepThroughInput
from sae_lens.saes.base import SAE
from sae_lens.saes.config import ArchitectureSAEConfig, ArchitectureTrainingSAEConfig
from sae_lens.saes.dead_features import dead_features_of
from sae_lens.saes.sparse_training import (
    hidden_pre_of,
    scaled_for_decoding,
)
from sae_lens.saes.sparsity_losses import SparsityTerm, l0_loss
from sae_lens.saes.training import (
    TrainCoefficientConfig,
    TrainingEncoding,
    TrainingSAE,
    TrainStepInput,
)
from sae_lens.saes.training_step import SparseTrainingDecoding, SparseTrainingEncoding
from sae_lens.saes.weights import constant_parameter, divisors

JumpReLUSparsity = Literal["step", "tanh", "quadratic", "power", "tanh-quad"]

# Files may hold thresholds of 0, whose logarithm is not finite.
_SMALLEST_THRESHOLD = 1e-30


@dataclass(kw_only=True)
class JumpReLUSAEConfig(ArchitectureSAEConfig):
    """Config of a `JumpReLUSAE`."""

    architecture: str = "jumprelu"


@dataclass(kw_only=True)
class JumpReLUTrainingSAEConfig(ArchitectureTrainingSAEConfig):
    """Config of a `JumpReLUTrainingSAE`.

    Attributes:
        jumprelu_init_threshold: first threshold.
        jumprelu_bandwidth: width of the pseudo-gradient's window.
        jumprelu_sparsity_loss_mode: "step", "tanh", "quadratic", "power" or "tanh-quad".
        l0_coefficient: weight of the sparsity term.
        l0_warm_up_steps: steps over which the weight rises from 0, or a share of all in [0, 1].
        pre_act_loss_coefficient: weight of the loss that revives dead features; None for none.
        jumprelu_tanh_scale: c in the tanh terms.
        lp_norm: p of the power term.
        frequency_scale: firing frequency at which tanh-quad doubles the price.
        jumprelu_ste_to_input: whether the window terms also reach the pre-activations.
        target_l0: T of the quadratic term, in (0, d_sae].
    """

    architecture: str = "jumprelu"
    jumprelu_init_threshold: float = 0.01
    jumprelu_bandwidth: float = 0.05
    jumprelu_sparsity_loss_mode: JumpReLUSparsity = "step"
    l0_coefficient: float = 1.0
    l0_warm_up_steps: int | float = 0
    pre_act_loss_coefficient: float | None = None
    jumprelu_tanh_scale: float = 4.0
    jumprelu_ste_to_input: bool = False
    target_l0: float | None = None
    lp_norm: float = 1.0
    frequency_scale: float = 0.01

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        check_thresholds(self.jumprelu_init_threshold, self.jumprelu_bandwidth, may_be_zero=True)
        mode = self.jumprelu_sparsity_loss_mode
        if mode not in get_args(JumpReLUSparsity):
            raise ValueError(
                f"jumprelu_sparsity_loss_mode is {mode!r}; allowed are "
                f"{', '.join(get_args(JumpReLUSparsity))}."
            )
        if mode == "quadratic" and not (self.target_l0 and 0 < self.target_l0 <= self.d_sae):
            raise ValueError(
                f"The quadratic sparsity loss needs target_l0 in (0, {self.d_sae}], not "
                f"{self.target_l0}."
            )


def check_thresholds(first: float, bandwidth: float, may_be_zero: bool) -> None:
    """`ValueError` for a first threshold or a window's width that cannot be.

    Args:
        first: the threshold.
        bandwidth: the width.
        may_be_zero: whether the threshold itself is the parameter, not its logarithm.
    """
    if not (0 <= first < math.inf and (first or may_be_zero)):
        least = "at least" if may_be_zero else "above"
        raise ValueError(f"jumprelu_init_threshold is {first}; it must be {least} 0.")
    if not 0 < bandwidth < math.inf:
        raise ValueError(
            f"jumprelu_bandwidth is {bandwidth}; the width of a window must be above 0."
        )


class JumpReLUSAE(SAE):
    """See the module's text."""

    architecture = "jumprelu"
    threshold: nn.Parameter

    def initialize_weights(self) -> None:
        """`threshold`, then `b_enc`, `W_dec`, `W_enc`, `b_dec`."""
        self.initialize_weights_jumprelu()

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, [..., d_in] to [..., d_sae]."""
        hidden_pre = self.hook_sae_acts_pre(self.linear_encode(self.process_sae_in(x)))
        above = (hidden_pre > self.threshold).to(hidden_pre.dtype)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre) * above)

    def fold_W_dec_norm(self) -> None:
        """Unit decoder rows; bias and thresholds scale with the encoder."""
        self._fold_decoder_norms(self.b_enc.data, self.threshold.data)


class JumpReLUTrainingSAE(TrainingSAE, JumpReLUSAE):
    """See the module's text."""

    coefficient_name = "l0"

    def initialize_weights_jumprelu(self) -> None:
        """`log_threshold` (v5) or `threshold` (v6), then the standard parameters."""
        cfg = self._training_cfg
        self.bandwidth = cfg.jumprelu_bandwidth
        first = cfg.jumprelu_init_threshold
        check_thresholds(first, self.bandwidth, may_be_zero=self.form == "v6")
        if self.form == "v6":
            parameter = constant_parameter(
                cfg.d_sae, value=first, dtype=torch.float32, device=self.device
            )
            # the class has a read-only property of this name for the v5 form
            self._parameters["threshold"] = parameter
        else:
            self.log_threshold = self._vector(cfg.d_sae, math.log(first))
        self.initialize_weights_basic()

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, as in inference."""
        return JumpReLUSAE.encode(self, x)

    def encode_for_training(self, x: Tensor) -> TrainingEncoding:
        """Features with pseudo-gradients for the thresholds, and noised pre-activations."""
        hidden_pre = self.add_noise(
            self.hook_sae_acts_pre(self.linear_encode(self.process_sae_in(x)))
        )
        jump = JumpReLUThroughInput if self._ste_to_input() else JumpReLU
        features = jump.apply(hidden_pre, self.threshold, self.bandwidth)
        return TrainingEncoding(self.hook_sae_acts_post(features.to(hidden_pre.dtype)), hidden_pre)

    def _ste_to_input(self) -> bool:
        return self.form == "v6" and self.cfg.jumprelu_ste_to_input

    def prepare_training_pass(self) -> None:
        """Thresholds that are the parameter themselves stay at or above 0."""
        if self.form == "v6":
            with torch.no_grad():
                self.threshold.clamp_(min=0)

    def get_coefficients(self) -> dict[str, TrainCoefficientConfig]:
        """The L0 coefficient: `l0_coefficient` (v6), or `l1_coefficient` (v5)."""
        if self.form == "v5":
            return super().get_coefficients()
        return {"l0": TrainCoefficientConfig(self.cfg.l0_coefficient, self.cfg.l0_warm_up_steps)}

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """`l0_loss`, and in the v6 form `pre_act_loss` when it has a coefficient."""
        losses = {"l0_loss": self._sparsity_loss(step.coefficient("l0"), encoding)}
        if self.form == "v6" and self.cfg.pre_act_loss_coefficient is not None:
            losses["pre_act_loss"] = self._pre_act_loss(encoding.hidden_pre, step.dead_neuron_mask)
        return losses

    def _sparsity_loss(self, coefficient: float, encoding: TrainingEncoding) -> Tensor:
        term = self.sparsity_term()
        if term is not None:
            return term.of(encoding.feature_acts * self.decoder_norms(), coefficient)
        return l0_loss(self.l0_of(encoding), coefficient, self._l0_in_loss())

    def l0_of(self, encoding: TrainingEncoding) -> Float[Tensor, " batch"]:
        """Active features of each token, with pseudo-gradients for the thresholds."""
        active = self._step_fn().apply(encoding.hidden_pre, self.threshold, self.bandwidth)
        return active.sum(dim=-1, dtype=sum_dtype(active))

    def l0_of_entries(self, encoding: SparseTrainingEncoding) -> Float[Tensor, " batch"]:
        """The same from active entries."""
        active = encoding.active
        threshold = self.threshold.index_select(0, active.cols)
        return active.sum_rows(
            self._step_fn().apply(encoding.hidden_values, threshold, self.bandwidth)
        )

    def _step_fn(self) -> type[Step]:
        return StepThroughInput if self._ste_to_input() else Step

    def _l0_in_loss(self) -> float | None:
        """The L0 that the quadratic term leads to; None for the plain one."""
        is_quadratic = self.form == "v6" and self.cfg.jumprelu_sparsity_loss_mode == "quadratic"
        return self.cfg.target_l0 if is_quadratic else None

    def _pre_act_loss(self, hidden_pre: Tensor, dead_neuron_mask: Tensor | None) -> Tensor:
        if dead_neuron_mask is None:
            return hidden_pre.new_zeros(())
        below = torch.relu(self.threshold - hidden_pre) * dead_neuron_mask * self.decoder_norms()
        per_token = below.sum(dim=-1, dtype=sum_dtype(below))
        return self.cfg.pre_act_loss_coefficient * per_token.mean()

    def has_sparse_form(self) -> bool:
        """With a window of some width, and a sum in the loss."""
        term = self.sparsity_term()
        return self.bandwidth > 0 and (term is None or term.has_sparse_form)

    def sparsity_term(self) -> SparsityTerm | None:
        """The term of the features' strengths; None for a term of their number."""
        mode = self.cfg.jumprelu_sparsity_loss_mode if self.form == "v6" else "step"
        if mode in ("step", "quadratic"):
            return None
        cfg = self.cfg
        return SparsityTerm(mode, cfg.lp_norm, cfg.jumprelu_tanh_scale, cfg.frequency_scale)

    def needs_decoder_norms(self) -> bool:
        """When they weigh a term."""
        return self.form == "v6" and (
            self.sparsity_term() is not None or self.cfg.pre_act_loss_coefficient is not None
        )

    def count_active(self, encoding: TrainingEncoding) -> Tensor:
        """Entries above the threshold or in the window around it."""
        return (encoding.hidden_pre > self._lowest_with_gradient()).sum()

    @torch.no_grad()
    def _lowest_with_gradient(self) -> Tensor:
        """Below this, per feature, nothing has a gradient; a little less than the window's edge."""
        threshold = self.threshold
        slack = 1e-3 * self.bandwidth + 1e-6 * (threshold.abs() + self.b_enc.abs())
        return threshold - 0.5 * self.bandwidth - slack

    def sparse_encode_for_training(self, x: Tensor) -> SparseTrainingEncoding:
        """Entries above the threshold, or close enough for a pseudo-gradient."""
        active, hidden = self.entries_above(x, self._lowest_with_gradient())
        jump = JumpReLUThroughInput if self._ste_to_input() else JumpReLU
        features = jump.apply(
            hidden, self.threshold.index_select(0, active.cols), self.bandwidth
        ).to(hidden.dtype)
        decoded = scaled_for_decoding(self, features, active.cols)
        return SparseTrainingEncoding(active, features, hidden, decoded)

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """As `auxiliary_losses`; the pre-activation loss is dense over the dead features."""
        losses = {"l0_loss": self._sparsity_of_entries(step.coefficient("l0"), encoding, decoding)}
        if self.form == "v6" and self.cfg.pre_act_loss_coefficient is not None:
            losses["pre_act_loss"] = decoding.sae_out.new_zeros(())
            dead = dead_features_of(step)
            if dead is not None:
                assert decoding.decoder_norms is not None
                hidden_pre = hidden_pre_of(self, decoding.processed_in, dead.indices)
                below = torch.relu(self.threshold[dead.indices] - hidden_pre)
                below = dead.only(below * decoding.decoder_norms[dead.indices])
                per_token = below.sum(dim=-1, dtype=sum_dtype(below))
                losses["pre_act_loss"] = self.cfg.pre_act_loss_coefficient * per_token.mean()
        return losses

    def _sparsity_of_entries(
        self,
        coefficient: float,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> Tensor:
        active = encoding.active
        term = self.sparsity_term()
        if term is not None:
            assert decoding.decoder_norms is not None
            weighted = encoding.feature_values * decoding.decoder_norms.index_select(0, active.cols)
            return term.of_entries(weighted, active, coefficient)
        return l0_loss(self.l0_of_entries(encoding), coefficient, self._l0_in_loss())

    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """As for the inference SAE; through the logarithm in the v5 form."""
        if self.form == "v6":
            self._fold_decoder_norms(self.b_enc.data, self.threshold.data)
            return
        norms = divisors(self.decoder_norms())
        self._fold_decoder_norms(self.b_enc.data)
        self.log_threshold.data += norms.log()

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Files hold `threshold`."""
        if "log_threshold" in state_dict:
            state_dict["threshold"] = torch.exp(state_dict.pop("log_threshold")).detach()

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Back to this form's parameter; thresholds of 0 or less become tiny ones."""
        if self.form == "v6":
            if "log_threshold" in state_dict:
                state_dict["threshold"] = torch.exp(state_dict.pop("log_threshold"))
            if "threshold" in state_dict:
                state_dict["threshold"] = state_dict["threshold"].float()
        elif "threshold" in state_dict:
            threshold = state_dict.pop("threshold").clamp(min=_SMALLEST_THRESHOLD)
            state_dict["log_threshold"] = torch.log(threshold)


register_sae_class("jumprelu", JumpReLUSAE, JumpReLUSAEConfig)
register_sae_training_class("jumprelu", JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig)
