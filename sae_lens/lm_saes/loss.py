"""The terms of Language-Model-SAEs' loss, in the two forms that training passes here have.

They take the place of an SAE's own terms, so that encoding, decoding and kernels are those of every
other training run. With `f` features, `w` decoder rows, `h` pre-activations, `e` the residual:

    l_s   = coefficient * sparsity(f |w|)
    l_p   = coefficient * mean over tokens of sum_i relu(theta_i - h_i) |w_i|        (JumpReLU)
    l_aux = coefficient * mean over tokens of |e - a W_dec|^2                        (aux-k)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sae_lens.saes.dead_features import DeadFeatures, dead_features_of
from sae_lens.saes.sparsity_losses import SparsityLossName, SparsityTerm, l0_loss
from sae_lens.saes.training_step import (
    SparseTrainingDecoding,
    SparseTrainingEncoding,
    TrainingEncoding,
    TrainStepInput,
)
from sae_lens.training.dead_feature_terms import dead_feature_loss, hidden_pre_of_encoding

L0Loss = Literal["step", "quadratic"]
SparsityLossType = SparsityLossName | L0Loss


@dataclass(frozen=True)
class L0Term:
    """The number of features above their thresholds (JumpReLU).

    Attributes:
        target: the L0 that the quadratic term leads to; None for the plain one.
    """

    target: float | None = None


@dataclass(frozen=True)
class LmSaesTerms:
    """See the module's text.

    Attributes:
        sae: the SAE that is trained.
        l1_coefficient: weight of the sparsity term.
        lp_coefficient: weight of the term of pre-activations below their thresholds.
        auxk_coefficient: weight of the aux-k term.
        sparsity: the sparsity term; None for none.
        k_aux: dead features that model each token's residual.
        has_thresholds: whether there can be a term of them.
    """

    sae: Any
    l1_coefficient: float
    lp_coefficient: float | None
    auxk_coefficient: float | None
    sparsity: SparsityTerm | L0Term | None
    k_aux: int
    has_thresholds: bool

    def has_sparse_form(self) -> bool:
        """Unless there is a term of all pre-activations below their thresholds."""
        is_sum = not isinstance(self.sparsity, SparsityTerm) or self.sparsity.has_sparse_form
        return is_sum and not self._has_lp_term

    @property
    def _has_lp_term(self) -> bool:
        return bool(self.lp_coefficient) and self.has_thresholds

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """The terms that are asked for."""
        sae, losses = self.sae, {}
        if isinstance(self.sparsity, L0Term):
            losses["l_s"] = l0_loss(sae.l0_of(encoding), self.l1_coefficient, self.sparsity.target)
        elif self.sparsity is not None:
            weighted = encoding.feature_acts
            if not getattr(sae, "rescales_acts", False):  # else they contain their norm already
                weighted = weighted * sae.decoder_norms()
            losses["l_s"] = self.sparsity.of(weighted, self.l1_coefficient)
        if self._has_lp_term:
            below = torch.relu(sae.threshold - encoding.hidden_pre) * sae.decoder_norms()
            losses["l_p"] = self.lp_coefficient * below.sum(dim=-1).mean()
        dead = dead_features_of(step)
        hidden = None if dead is None else hidden_pre_of_encoding(sae, encoding, dead.indices)
        return losses | self._aux_term(step.sae_in, sae_out, dead, hidden)

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """The same terms, from active entries; aux-k is dense over the dead features."""
        sae, losses = self.sae, {}
        if isinstance(self.sparsity, L0Term):
            l0 = sae.l0_of_entries(encoding)
            losses["l_s"] = l0_loss(l0, self.l1_coefficient, self.sparsity.target)
        elif self.sparsity is not None:
            # values that contain their decoder's norm have no gradient through it here
            contain_norms = getattr(sae, "rescales_acts", False)
            values = encoding.decoded_values if contain_norms else encoding.feature_values
            norms = decoding.decoder_norms
            norms = sae.decoder_norms() if norms is None else norms
            weighted = values * norms[encoding.active.cols]
            losses["l_s"] = self.sparsity.of_entries(weighted, encoding.active, self.l1_coefficient)
        dead = dead_features_of(step)
        hidden = None
        if dead is not None:
            hidden = sae.hidden_pre_of_features(decoding.processed_in, dead.indices)
        return losses | self._aux_term(step.sae_in, decoding.sae_out, dead, hidden)

    def _aux_term(
        self,
        target: Tensor,
        sae_out: Tensor,
        dead: DeadFeatures | None,
        hidden: Tensor | None,
    ) -> dict[str, Tensor]:
        if not self.auxk_coefficient:
            return {}
        if dead is None or hidden is None:
            return {"l_aux": sae_out.new_zeros(())}
        loss = dead_feature_loss(self.sae, target - sae_out, hidden, dead, self.k_aux)
        return {"l_aux": self.auxk_coefficient * loss}
