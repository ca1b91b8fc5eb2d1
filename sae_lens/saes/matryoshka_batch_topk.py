"""Matryoshka BatchTopK SAE: features in nested groups, each prefix of which reconstructs alone.

    f as in BatchTopK;  x'_w = f[:w] W_dec[:w] + b_dec  for widths w_1 < w_2 < ... < w_n = d_sae
    loss = sum over w of |x - x'_w|^2 + aux-k

Bussmann, Nabeshima, Karvonen & Nanda 2025, "Learning Multi-Level Features with Matryoshka Sparse
Autoencoders" (arXiv:2503.17547): early features have to be general, since the later ones
cannot help them. All prefixes come from one decoding, in pieces between two widths, which are then
summed up. The loss of width d_sae is `mse_loss`; of the others, `inner_mse_loss_<w>`.

The auxiliary term is that of BatchTopK, over all features; with `use_matryoshka_aux_loss` it is
summed over the levels: the dead features between two widths model what the prefix up to the second
one leaves.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.autograd import sparse_decode_with_norms
from sae_lens.kernels.sorting import stable_order
from sae_lens.number_kinds import is_whole_number
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.batch_topk import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.dead_features import may_look_at
from sae_lens.saes.sparse_training import finish_decoding
from sae_lens.saes.training_step import (
    SparseTrainingDecoding,
    SparseTrainingEncoding,
    TrainingEncoding,
    TrainStepInput,
)

_AUX_NAME = "auxiliary_reconstruction_loss"


@dataclass(kw_only=True)
class MatryoshkaBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """Config of a `MatryoshkaBatchTopKTrainingSAE`.

    Attributes:
        matryoshka_widths: the nested numbers of features, increasing; d_sae is added at the end
            (with a warning) when it is missing.
        use_matryoshka_aux_loss: let each level's dead features model that level's residual.
    """

    architecture: str = "matryoshka_batchtopk"
    matryoshka_widths: list[int] = field(default_factory=list)
    use_matryoshka_aux_loss: bool = False

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        self.matryoshka_widths = _checked_widths(self.matryoshka_widths, self.d_sae)


def _checked_widths(widths: list[int], d_sae: int) -> list[int]:
    widths = list(widths)
    if not all(is_whole_number(width) for width in widths):
        raise ValueError(f"matryoshka_widths is {widths}; it must be a list of whole numbers.")
    increasing = all(small < large for small, large in pairwise(widths))
    if not increasing or any(not 0 < width <= d_sae for width in widths):
        raise ValueError(
            f"matryoshka_widths is {widths}; the widths must increase and lie between 1 and the "
            f"number of features, {d_sae}."
        )
    if not widths or widths[-1] != d_sae:
        warnings.warn(
            f"matryoshka_widths {widths} does not end with d_sae, so {d_sae} is added.",
            UserWarning,
            stacklevel=4,
        )
        widths.append(d_sae)
    return widths


class MatryoshkaBatchTopKTrainingSAE(BatchTopKTrainingSAE):
    """See the module's text."""

    architecture = "matryoshka_batchtopk"

    @property
    def _widths(self) -> list[int]:
        return self.cfg.matryoshka_widths

    @property
    def _inner_bounds(self) -> list[tuple[int, int]]:
        """(first, one past the last) feature of every level but the last."""
        return list(pairwise([0, *self._widths[:-1]]))

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """`inner_mse_loss_<w>` of every width but the last, and the auxiliary term."""
        prefixes = self._prefix_reconstructions(encoding.feature_acts)
        losses = self._inner_losses(prefixes, step.sae_in)
        level_losses = [
            super(MatryoshkaBatchTopKTrainingSAE, self).auxiliary_losses(
                replace(step, dead_neuron_mask=dead), encoding, recons
            )[_AUX_NAME]
            for recons, dead in self._aux_levels(prefixes, sae_out, step.dead_neuron_mask)
        ]
        return {**losses, _AUX_NAME: torch.stack(level_losses).sum()}

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """As `auxiliary_losses`, from active entries."""
        prefixes = self._prefix_reconstructions_of_entries(encoding)
        losses = self._inner_losses(prefixes, step.sae_in)
        level_losses = [
            super(MatryoshkaBatchTopKTrainingSAE, self).sparse_auxiliary_losses(
                replace(step, dead_neuron_mask=dead),
                encoding,
                decoding._replace(sae_out=recons),
            )[_AUX_NAME]
            for recons, dead in self._aux_levels(prefixes, decoding.sae_out, step.dead_neuron_mask)
        ]
        return {**losses, _AUX_NAME: torch.stack(level_losses).sum()}

    def _inner_losses(self, prefixes: list[Tensor], sae_in: Tensor) -> dict[str, Tensor]:
        return {
            f"inner_mse_loss_{width}": self.mse_loss_fn(recons, sae_in).sum(dim=-1).mean()
            for width, recons in zip(self._widths, prefixes, strict=False)
        }

    def _prefix_reconstructions(self, feature_acts: Float[Tensor, "batch d_sae"]) -> list[Tensor]:
        scaled = self.apply_finetuning_scaling_factor(feature_acts)
        pieces = [scaled[:, a:b] @ self.W_dec[a:b] for a, b in self._inner_bounds]
        return self._summed_up(pieces)

    def _prefix_reconstructions_of_entries(self, encoding: SparseTrainingEncoding) -> list[Tensor]:
        """One sparse decoding in which a token has a row for each level."""
        if not self._inner_bounds:
            return []
        active = encoding.active
        n_tokens = active.shape[0]
        n_levels = len(self._widths)
        row = active.rows.clone()
        for width in self._widths[:-1]:
            row += n_tokens * (active.cols >= width)
        order = stable_order(row, n_levels * n_tokens)
        row = row[order]
        if may_look_at(row):  # elsewhere all levels are decoded, rather than counted
            n_levels -= 1
            row = row[: torch.searchsorted(row, n_levels * n_tokens)]
            order = order[: len(row)]
        shape = torch.Size((n_levels * n_tokens, active.shape[1]))
        by_level = ActiveSet(row, active.cols[order], shape)
        values = encoding.decoded_values[order].unsqueeze(0)
        decoded = sparse_decode_with_norms(values, self.W_dec, by_level, self._workspace)
        pieces = decoded.recons[0].unflatten(0, (n_levels, n_tokens))
        return self._summed_up(list(pieces[: len(self._inner_bounds)]))

    def _summed_up(self, pieces: list[Tensor]) -> list[Tensor]:
        recons, total = [], None
        for piece in pieces:
            total = piece if total is None else total + piece
            recons.append(finish_decoding(self, total))
        return recons

    def _aux_levels(
        self,
        prefixes: list[Tensor],
        sae_out: Tensor,
        dead_neuron_mask: Bool[Tensor, " d_sae"] | None,
    ) -> list[tuple[Tensor, Tensor | None]]:
        """(reconstruction, dead features that model what it leaves) of each auxiliary term."""
        if dead_neuron_mask is None or not self.cfg.use_matryoshka_aux_loss:
            return [(sae_out, dead_neuron_mask)]
        feature = torch.arange(self.cfg.d_sae, device=dead_neuron_mask.device)
        starts = [0, *self._widths[:-1]]
        return [
            (recons, dead_neuron_mask & (feature >= start) & (feature < end))
            for recons, start, end in zip([*prefixes, sae_out], starts, self._widths, strict=True)
        ]


register_sae_training_class(
    "matryoshka_batchtopk", MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
)
