"""Terms of the loss through which dead features learn, for every architecture.

- aux-k (Gao et al. 2024, arXiv:2406.04093): the largest pre-activations of dead features model what
  the reconstruction leaves over;
- ghost gradients (Jermyn & Templeton 2024, Circuits Updates, January 2024): dead features predict
  it through `exp` of their pre-activations.

The residual carries no gradient and no bias is added, so encoder columns and decoder rows of dead
features learn, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.saes.dead_features import DeadFeatures, dead_features_of
from sae_lens.saes.losses import ghost_out_loss, reconstruction_error
from sae_lens.saes.sparsity_losses import largest_dead_acts
from sae_lens.saes.training_step import (
    LossTerms,
    SparseTrainingDecoding,
    SparseTrainingEncoding,
    TrainingEncoding,
    TrainStepInput,
)
from sae_lens.saes.weights import divisors

_WITHOUT_PRE_ACTIVATIONS = ("matching_pursuit", "temporal")


@dataclass
class AuxK:
    """Dead features model the residual, through ReLU, whatever the activation function.

    Attributes:
        coefficient: weight of the term.
        k: how many dead features model each token.
    """

    coefficient: float = 1 / 32
    k: int = 512

    def __post_init__(self) -> None:
        if self.coefficient <= 0 or self.k < 1:
            raise ValueError(f"aux_k is {self}; the coefficient must be above 0 and k at least 1.")


class DeadFeatureTerms:
    """The terms of an SAE's own loss, and those for its dead features besides.

    Args:
        sae: the SAE.
        aux_k: the aux-k term; None for none.
        ghost_gradients: whether there is a term of ghost gradients.
        others: what makes the other terms, if not the SAE.

    Raises:
        ValueError: when the SAE's own loss has such a term already, or it has no pre-activations.

    Attributes:
        aux_scale: what the weight of aux-k is multiplied with at present.
    """

    def __init__(
        self,
        sae: Any,
        aux_k: AuxK | None,
        ghost_gradients: bool,
        others: LossTerms | None = None,
    ) -> None:
        self.sae, self.aux_k, self.ghost_gradients = sae, aux_k, ghost_gradients
        self.others: LossTerms = sae if others is None else others
        self.aux_scale = 1.0
        cfg = sae.cfg
        if str(cfg.architecture) in _WITHOUT_PRE_ACTIVATIONS:
            raise ValueError(
                f"aux_k and ghost_gradients work on pre-activations; {cfg.architecture!r} SAEs "
                "have none."
            )
        if aux_k is not None and _has_an_auxiliary_term(sae):
            raise ValueError(
                f"The loss of {cfg.architecture!r} SAEs has an aux-k term of its own; set its "
                "aux_loss_coefficient to 0, or leave features.aux_k out."
            )
        if ghost_gradients and others is None and getattr(cfg, "use_ghost_grads", False):
            raise ValueError(
                "use_ghost_grads of the SAE's config and features.ghost_gradients are the same "
                "term; set one of them."
            )

    def has_sparse_form(self) -> bool:
        """They are dense over the dead features alone, whatever the step's form."""
        return self.others.has_sparse_form()

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """The SAE's own terms, `auxk_loss` and `ghost_grad_loss`."""
        losses = self.others.auxiliary_losses(step, encoding, sae_out)
        dead = dead_features_of(step)
        hidden = None if dead is None else hidden_pre_of_encoding(self.sae, encoding, dead.indices)
        return losses | self._terms(step.sae_in, sae_out, dead, hidden)

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """As `auxiliary_losses`."""
        losses = self.others.sparse_auxiliary_losses(step, encoding, decoding)
        dead = dead_features_of(step)
        hidden = None
        if dead is not None:
            hidden = self.sae.hidden_pre_of_features(decoding.processed_in, dead.indices)
        return losses | self._terms(step.sae_in, decoding.sae_out, dead, hidden)

    def _terms(
        self,
        target: Tensor,
        sae_out: Tensor,
        dead: DeadFeatures | None,
        hidden: Tensor | None,
    ) -> dict[str, Tensor]:
        sae, losses = self.sae, {}
        none = sae_out.new_zeros(())
        if self.aux_k is not None:
            losses["auxk_loss"] = none
        if self.ghost_gradients:
            losses["ghost_grad_loss"] = none
        if dead is None or hidden is None:
            return losses
        if self.aux_k is not None:
            weight = self.aux_k.coefficient * self.aux_scale
            loss = dead_feature_loss(sae, target - sae_out, hidden, dead, self.aux_k.k)
            losses["auxk_loss"] = weight * loss
        if self.ghost_gradients and sae.training:
            acts = torch.exp(dead.only(hidden, -torch.inf))
            ghost_out = undo_scale(sae, sae.linear_decode_some(acts, dead.indices))
            errors = sae.mse_loss_fn(sae_out, target)
            loss = ghost_out_loss(ghost_out, target, sae_out, errors, sae.mse_loss_fn)
            losses["ghost_grad_loss"] = dead.if_any(loss)
        return losses


def dead_feature_loss(
    sae: Any,
    residual: Float[Tensor, "batch d_out"],
    hidden_pre: Float[Tensor, "batch n_dead"],
    dead: DeadFeatures,
    k: int,
) -> Float[Tensor, ""]:
    """Aux-k of dead features with these pre-activations, without a coefficient."""
    ranks_by_norm = getattr(sae, "rescales_acts", False) or getattr(
        sae.cfg, "scale_sparsity_penalty_by_decoder_norm", False
    )
    norms = sae.decoder_norms(dead.indices).detach() if ranks_by_norm else None
    # through ReLU, what is negative is not there
    acts = largest_dead_acts(dead.only(hidden_pre, -1.0), k, norms)
    recons = undo_scale(sae, sae.linear_decode_some(acts, dead.indices))
    return dead.if_any(reconstruction_error(recons, residual.detach()))


def undo_scale(sae: Any, out: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch d_out"]:
    """What is decoded, brought from normalised activations to raw ones, as a difference."""
    shift = sae.run_time_activation_norm_fn_out(torch.zeros_like(out))
    return sae.run_time_activation_norm_fn_out(out) - shift


def hidden_pre_of_encoding(
    sae: Any, encoding: TrainingEncoding, features: Tensor
) -> Float[Tensor, "batch n"]:
    """Pre-activations of some features; of the gate where there is one, without decoder norms."""
    hidden = encoding.hidden_pre if encoding.gate_pre is None else encoding.gate_pre
    hidden = hidden[:, features]
    if getattr(sae, "rescales_acts", False):
        hidden = hidden / divisors(sae.decoder_norms(features))
    return hidden


def _has_an_auxiliary_term(sae: Any) -> bool:
    if hasattr(sae.cfg, "aux_loss_coefficient"):
        return sae.cfg.aux_loss_coefficient != 0
    return str(sae.cfg.architecture) == "topk"
