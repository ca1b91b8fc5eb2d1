"""What moves a trainer's weights: its optimiser, and what is done to them at the end."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from sae_lens.saes.training import TrainingSAE
from sae_lens.training.active_features import ActiveFeatures
from sae_lens.training.folding import fold_source
from sae_lens.training.optim import (
    chosen_optimizer,
    clip_and_step,
    gradient_norm,
    groups_with_factors,
    make_optimizer,
)
from sae_lens.training.sources import ActivationSource
from sae_lens.training.statistics import FiringStatistics

logger = logging.getLogger(__name__)


class TrainerUpdates:
    """The part of a trainer that changes the weights."""

    sae: TrainingSAE
    cfg: Any
    features: ActiveFeatures
    source: ActivationSource
    statistics: FiringStatistics
    optimizer: torch.optim.Optimizer
    n_training_steps: int
    weights_are_final: bool

    @property
    def normalizes_decoder(self) -> bool:
        """Whether decoder rows are kept at unit norm."""
        of_sae = getattr(self.sae.cfg, "normalize_sae_decoder", False)
        return bool(getattr(self.cfg, "normalize_sae_decoder", of_sae))

    def _make_optimizer(self) -> torch.optim.Optimizer:
        cfg, features = self.cfg, self.features.features
        groups = groups_with_factors(self.sae, cfg.lr, features.jumprelu_lr_factor)
        if features.optimizer is None:
            return make_optimizer(groups, cfg.lr, cfg.adam_beta1, cfg.adam_beta2)
        betas = (cfg.adam_beta1, cfg.adam_beta2)
        return chosen_optimizer(features.optimizer, groups, cfg.lr, betas)

    @property
    def _has_gradients_left(self) -> bool:
        return not self.features.completes_update(self.n_training_steps - 1)

    @property
    def _finishing_changes_weights(self) -> bool:
        return (
            self._has_gradients_left
            or self.normalizes_decoder
            or self.features.features.weight_average is not None
            or self.source.norm_scaling_factor is not None
            or self.source.whitening is not None
        )

    def _finish_weights(self) -> None:
        """Bring the weights to the form in which they are saved and returned.

        The decoder rows are normalised once more, since the last update moved them. Then, if the
        SAE was trained on scaled or whitened activations, that is folded in, so that it works on
        raw ones; the rows are not normalised after that, which would take the factor out again.
        """
        self.features.finish(self.sae, self.statistics.mean_l0())
        if self.normalizes_decoder:
            self.sae.set_decoder_norm_to_unit_norm()
        fold_source(self.sae, self.source)
        self.source.norm_scaling_factor = self.source.whitening = None
        self.weights_are_final = True

    def _norm_of_gradients(self, sae: TrainingSAE) -> Tensor | None:
        if self.normalizes_decoder and sae.W_dec.grad is not None:
            # Along its own direction a row could only grow, which the next normalisation undoes.
            sae.remove_gradient_parallel_to_decoder_directions()
        return gradient_norm(sae.parameters())

    def _update(self, sae: TrainingSAE, norm: Tensor | None, skip: Tensor | None = None) -> None:
        limit = self.features.features.max_gradient_norm
        clip_and_step(self.optimizer, sae.parameters(), norm, skip, limit)
        sae.recycle_gradients()

    def _update_with_what_is_left(self) -> None:
        """The last batches, too few for a whole accumulation, count as well."""
        if not self._has_gradients_left:
            return
        norm = self._norm_of_gradients(self.sae)
        if norm is None or not bool(torch.isfinite(norm)):
            logger.warning("The gradients of the last steps are not finite: no update.")
            return
        self._update(self.sae, norm)
        self.optimizer.zero_grad()
        self.features.averager.update(self.sae)
