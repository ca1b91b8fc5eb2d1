"""`TrainingSAE`: an SAE with a loss. The encoder is that of the architecture; nothing is repeated.

An architecture fills in `encode_for_training` and `auxiliary_losses`.

Two forms of formulas exist, told apart by `cfg.form`: "v5" (flat configs and runner configs) and
"v6" (per-architecture configs). Where they differ, the architecture's file says so.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.autograd import Decoded, sparse_decode_with_norms
from sae_lens.kernels.dispatch import SparseChoice, SparseKernels
from sae_lens.kernels.entry_capacity import EntryCapacity
from sae_lens.kernels.workspace import Workspace
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.base import SAE
from sae_lens.saes.config import SAEConfig, TrainingSAEConfig
from sae_lens.saes.initial_values import InitialValues
from sae_lens.saes.losses import ElementwiseLoss, ghost_grad_loss, mse_loss_fn_of
from sae_lens.saes.normalization import normalize
from sae_lens.saes.sparse_training import (
    entries_above,
    hidden_pre_of,
    may_be_sparse,
    measure_density,
    sparse_training_pass,
)
from sae_lens.saes.sparsity_losses import SparsityTerm
from sae_lens.saes.training_files import TrainingFiles
from sae_lens.saes.training_step import (
    LossTerms,
    SparseTrainingDecoding,
    SparseTrainingEncoding,
    TrainingEncoding,
    TrainStepInput,
    TrainStepOutput,
    as_step_input,
)
from sae_lens.saes.weights import are_without_values


@dataclass
class TrainCoefficientConfig:
    """A sparsity coefficient and the steps (or, as a float, share) over which it rises from 0."""

    value: float
    warm_up_steps: int | float = 0


class TrainingSAE(InitialValues, TrainingFiles, SAE):
    """An SAE that can be trained.

    Args:
        cfg: a `TrainingSAEConfig`, or anything with its fields and `get_base_sae_cfg_dict()`, such
            as a runner config.
        use_error_term: as for `SAE`; not for gated SAEs.

    Raises:
        ValueError: for an unknown architecture, ghost gradients on another architecture than
            standard, or a gated SAE with the error term.
    """

    #: name of the sparsity coefficient; empty when the loss has none
    coefficient_name: str = ""
    #: which formulas train, "v5" or "v6"
    form: str
    _training_cfg: Any

    @classmethod
    def _registered_class(cls, architecture: str) -> type[SAE]:
        return get_sae_training_class(architecture).sae_class

    @classmethod
    def _config_class(cls) -> type[SAEConfig]:
        return TrainingSAEConfig

    def __init__(self, cfg: Any, use_error_term: bool = False):
        # the architectures' initialisers, which the base constructor calls, need these already
        self.__dict__["form"] = getattr(cfg, "form", "v5")
        self.__dict__["_training_cfg"] = cfg
        super().__init__(self._inference_config(cfg))
        self.cfg = self.__dict__.pop("_training_cfg")
        self.use_error_term = use_error_term
        self._workspace = Workspace()
        self._entry_capacities: defaultdict[int, EntryCapacity] = defaultdict(EntryCapacity)
        self.sparse_kernels = getattr(self.cfg, "sparse_kernels", "auto")
        self.check_cfg_compatibility()
        if not are_without_values():
            self.initialize_weights_complex()
        self.turn_off_forward_pass_hook_z_reshaping()
        self.mse_loss_fn: ElementwiseLoss = self._get_mse_loss_fn()

    @staticmethod
    def _inference_config(cfg: Any) -> SAEConfig:
        values = dict(cfg.get_base_sae_cfg_dict())
        for name in ("model_from_pretrained_kwargs", "neuronpedia_id", "metadata"):
            values.pop(name, None)
        return SAEConfig(**{k: v for k, v in values.items() if k in SAEConfig.__dataclass_fields__})

    def check_cfg_compatibility(self) -> None:
        """Refuse combinations that have no meaning (see the class)."""
        if self.cfg.architecture != "standard" and getattr(self.cfg, "use_ghost_grads", False):
            raise ValueError(
                f"use_ghost_grads is for the standard architecture, not {self.cfg.architecture!r}; "
                "set use_ghost_grads=False."
            )
        if self.cfg.architecture == "gated" and self.use_error_term:
            raise ValueError(
                "A gated SAE cannot be trained with use_error_term=True; load it as SAE instead."
            )

    # -- what an architecture fills in ------------------------------------------------------------

    def encode_for_training(self, x: Tensor) -> TrainingEncoding:
        """The training encoder of this architecture."""
        raise NotImplementedError

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """All terms of the loss besides `mse_loss`, by name."""
        raise NotImplementedError

    def sparsity_term(self) -> SparsityTerm | None:
        """The term of the loss that follows the features' strengths; None without one."""
        return None

    def loss_terms(self, step: TrainStepInput) -> LossTerms:
        """What makes the terms of a step's loss: the step says, or it is this SAE."""
        return self if step.terms is None else step.terms

    def hidden_pre_of_features(self, x: Tensor, features: Tensor) -> Tensor:
        """Pre-activations of some features, which decide whether they fire.

        Args:
            x: activations, cast and normalised, but not centred.
            features: their indices, ascending.
        """
        return hidden_pre_of(self, x, features)

    # -- what an architecture with a sparse form fills in besides ---------------------------------

    def sparse_encode_for_training(self, x: Tensor) -> SparseTrainingEncoding:
        """The training encoder, at the entries where anything has a gradient.

        Args:
            x: activations, cast and normalised, but not centred.
        """
        raise NotImplementedError

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """The same terms as `auxiliary_losses`."""
        raise NotImplementedError

    def entries_above(
        self, x: Float[Tensor, "batch d_in"], lower: Float[Tensor, " d_sae"]
    ) -> tuple[ActiveSet, Float[Tensor, " nnz"]]:
        """Entries whose pre-activation exceeds `lower`, and the pre-activations there."""
        return entries_above(self, x, self.b_enc, lower)

    def sparse_decode(self, values: Float[Tensor, "sets nnz"], active: ActiveSet) -> Decoded:
        """What values at the entries sum up to, and the decoder norms if the losses need them."""
        norms = self.needs_decoder_norms()
        return sparse_decode_with_norms(values, self.W_dec, active, self._workspace, norms)

    def has_sparse_form(self) -> bool:
        """Whether this architecture has a sparse form under its config's settings."""
        return False

    def needs_decoder_norms(self) -> bool:
        """Whether the sparse form's losses need the norms of the decoder's rows."""
        return False

    def count_active(self, encoding: TrainingEncoding) -> Tensor:
        """How many entries the sparse form of a dense encoding would have (scalar tensor)."""
        return torch.count_nonzero(encoding.feature_acts)

    def expected_density(self, batch: int) -> float | None:
        """The share of active entries where it is known without measuring."""
        return None

    @property
    def sparse_kernels(self) -> SparseKernels:
        """How training steps are computed: "auto" (by measured density), "dense" or "sparse".

        "sparse" too falls back on the dense form where there is no sparse one: when something
        listens at a hook point, with noise, in half precision, under `torch.compile`.
        """
        return self._sparse_choice.mode

    @sparse_kernels.setter
    def sparse_kernels(self, mode: SparseKernels) -> None:
        self._sparse_choice = SparseChoice(mode)

    def recycle_gradients(self) -> None:
        """Drop the weights' gradients and use their memory for those of the next step.

        To be called after the optimiser's step, by whoever owns the gradients, instead of
        `zero_grad` for the encoder and the decoder. The tensors must not be read afterwards.
        """
        for weight in (self.W_enc, self.W_dec):
            if weight.grad is not None:
                self._workspace.give_back(weight.grad)
                weight.grad = None

    def get_coefficients(self) -> dict[str, TrainCoefficientConfig]:
        """The sparsity coefficient of the config under the name that the loss asks for."""
        if not self.coefficient_name:
            return {}
        steps = getattr(self.cfg, "l1_warm_up_steps", 0) or 0
        return {
            self.coefficient_name: TrainCoefficientConfig(float(self.cfg.l1_coefficient), steps)
        }

    # -- the training pass ------------------------------------------------------------------------

    def training_forward_pass(
        self,
        sae_in: Tensor | TrainStepInput | None = None,
        current_l1_coefficient: float | None = None,
        dead_neuron_mask: Tensor | None = None,
        *,
        step_input: TrainStepInput | None = None,
    ) -> TrainStepOutput:
        """Features, reconstruction and loss of one batch.

        Args:
            sae_in: activations [batch, d_in], or one `TrainStepInput` as the only argument.
            current_l1_coefficient: weight of the sparsity term.
            dead_neuron_mask: bool [d_sae]; which features count as dead.
            step_input: the `TrainStepInput`, by keyword.
        """
        step = as_step_input(sae_in, current_l1_coefficient, dead_neuron_mask, step_input)
        x, target = self.split_batch(step.sae_in)
        step = step if target is step.sae_in else replace(step, sae_in=target)
        self.prepare_training_pass()
        is_open = may_be_sparse(self, step)
        if is_open and self._sparse_choice.choose(self.expected_density(len(step.sae_in))):
            return sparse_training_pass(self, step, x)
        encoding = self.encode_for_training(x)
        sae_out = self.add_bypass(self.decode(encoding.feature_acts), x)
        losses = {"mse_loss": self.mse_loss_fn(sae_out, step.sae_in).sum(dim=-1).mean()}
        terms = self.loss_terms(step)
        losses |= terms.auxiliary_losses(step, encoding, sae_out)
        loss = torch.stack([part.to(losses["mse_loss"].dtype) for part in losses.values()]).sum()
        metrics = self.training_metrics()
        if is_open:
            metrics |= measure_density(self, encoding)
        return TrainStepOutput(
            sae_in=step.sae_in,
            sae_out=sae_out,
            feature_acts=encoding.feature_acts,
            hidden_pre=encoding.hidden_pre,
            loss=loss,
            losses=losses,
            metrics=metrics,
        )

    def split_batch(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """What is encoded and what is to be reconstructed: for an SAE the same."""
        return batch, batch

    def as_decoded(self, batch: Tensor) -> Tensor:
        """What is to be reconstructed, in the space of the decoder and its bias."""
        return normalize(self.cfg.normalize_activations, self.split_batch(batch)[1])[0]

    def add_bypass(self, recons: Tensor, x: Tensor) -> Tensor:
        """What was decoded, and what does not go through features: for an SAE nothing."""
        del x
        return recons

    def prepare_training_pass(self) -> None:
        """What must hold of the parameters before a pass (constraints)."""

    def training_metrics(self) -> dict[str, Any]:
        """Numbers of this architecture worth logging."""
        return {}

    def _get_mse_loss_fn(self) -> ElementwiseLoss:
        return mse_loss_fn_of(getattr(self.cfg, "mse_loss_normalization", None))

    # -- encoding ---------------------------------------------------------------------------------

    def add_noise(self, hidden_pre: Tensor) -> Tensor:
        """Pre-activations with the config's noise, in training mode only."""
        scale = getattr(self.cfg, "noise_scale", 0.0)
        if not self.training or not scale:
            return hidden_pre
        return hidden_pre + torch.randn_like(hidden_pre) * scale

    def encode_with_hidden_pre_fn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(feature_acts, hidden_pre) by the training encoder of this architecture."""
        return self.encode_for_training(x)[:2]

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(feature_acts, hidden_pre) by the training encoder of standard SAEs."""
        return _training_class("standard").encode_for_training(self, x)[:2]

    def encode_with_hidden_pre_gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(feature_acts, hidden_pre) by the training encoder of gated SAEs."""
        return _training_class("gated").encode_for_training(self, x)[:2]

    def encode_with_hidden_pre_jumprelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(feature_acts, hidden_pre) by the training encoder of jumprelu SAEs."""
        return _training_class("jumprelu").encode_for_training(self, x)[:2]

    def encode_standard(self, x: Tensor) -> Tensor:
        """Features by the training encoder of this architecture."""
        return self.encode_for_training(x).feature_acts

    def _encode_for_forward(self, x: Tensor) -> Tensor:
        return self.encode_for_training(x).feature_acts

    def _clean_encode(self, x: Tensor) -> Tensor:
        return super().encode(x)

    def _forward_is_noisy(self) -> bool:
        return self.training and bool(getattr(self.cfg, "noise_scale", 0.0))

    @property
    def threshold(self) -> Tensor:
        """Thresholds of a jumprelu SAE, [d_sae]; `ValueError` for other architectures."""
        stored = self._parameters.get("threshold")
        if stored is not None:
            return stored
        log_threshold = self._parameters.get("log_threshold")
        if log_threshold is None:
            raise ValueError(
                f"Only jumprelu SAEs have thresholds; this one is {self.cfg.architecture!r}."
            )
        return torch.exp(log_threshold)

    # -- losses under their 5.x names -------------------------------------------------------------

    def calculate_topk_aux_loss(
        self,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor | None,
    ) -> Tensor:
        """The aux-k loss of topk SAEs (see `saes/topk.py`)."""
        return _training_class("topk").aux_loss(self, sae_in, sae_out, hidden_pre, dead_neuron_mask)

    def calculate_ghost_grad_loss(
        self,
        x: Tensor,
        sae_out: Tensor,
        per_item_mse_loss: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor,
    ) -> Tensor:
        """The ghost-gradient loss of standard SAEs (see `saes/losses.py`)."""
        return ghost_grad_loss(
            x,
            sae_out,
            per_item_mse_loss,
            hidden_pre,
            dead_neuron_mask,
            self.W_dec,
            self.mse_loss_fn,
        )


def _training_class(architecture: str) -> Any:
    return get_sae_training_class(architecture).sae_class


__all__ = [
    "TrainCoefficientConfig",
    "TrainStepInput",
    "TrainStepOutput",
    "TrainingEncoding",
    "TrainingSAE",
    "as_step_input",
]
