"""`SAEAdapter`: the calls that trainer and initialiser make, on a `TrainingSAE`.

The adapter has no state of its own. The one thing that it adds to an SAE is the factor by which
activations are scaled under "expected_average_only_in" (`norm_activation` "dataset-wise" there),
which is kept on the SAE as `activation_norm_scaling_factor`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_lens.saes import BatchTopKTrainingSAE, TrainingSAE
from sae_lens.saes.sparsity_losses import (
    SparsityLossName,
    dead_feature_reconstruction_loss,
    sparsity_loss,
)
from sae_lens.saes.training_step import TrainingEncoding
from sae_lens.saes.transcoder_training import TranscoderTraining
from sae_lens.saes.weights import row_norms, unit_rows_

_SELECTIONS = ("", "jumprelu_", "topk_", "batchtopk_")
ARCHITECTURES = (
    "standard",
    "jumprelu",
    "topk",
    "batchtopk",
    *(f"{kind}{name}" for name in ("transcoder", "skip_transcoder") for kind in _SELECTIONS),
)
_SCALED = "expected_average_only_in"


class LossParts(NamedTuple):
    """The loss of a batch and its parts; parts that are not asked for are None."""

    loss: Tensor
    l_rec: Tensor
    """mean squared error, summed over dimensions"""
    l_s: Tensor | None
    """sparsity term, with its coefficient"""
    l_p: Tensor | None
    """term of the pre-activations below their thresholds, with its coefficient"""
    l_aux: Tensor | None
    """aux-k term, with its coefficient"""
    encoding: TrainingEncoding
    label: Tensor
    """what is reconstructed, [tokens, d_out]"""
    reconstruction: Tensor
    """[tokens, d_out]"""


class TokenBatch(NamedTuple):
    """The tokens of a batch that count, one row each."""

    x: Float[Tensor, "tokens d_in"]
    label: Float[Tensor, "tokens d_out"]


class SAEAdapter:
    """A `TrainingSAE` with the calls of Language-Model-SAEs.

    Raises:
        ValueError: for an architecture whose loss has further parts.
    """

    def __init__(self, sae: TrainingSAE) -> None:
        if str(sae.cfg.architecture) not in ARCHITECTURES:
            raise ValueError(
                f"The architecture {str(sae.cfg.architecture)!r} cannot be trained here; these "
                f"can: {', '.join(ARCHITECTURES)}. Use SAETrainer for the others."
            )
        self.sae = sae
        self.hook_point_in: str = sae.cfg.hook_name
        self.hook_point_out: str = (
            getattr(sae.cfg.metadata, "hook_name_out", None) or self.hook_point_in
        )

    # -- activations ------------------------------------------------------------------------------

    @property
    def needs_dataset_norm(self) -> bool:
        """Whether activations are scaled by a factor that has to be measured first."""
        return self.sae.cfg.normalize_activations == _SCALED

    @property
    def scaling_factor(self) -> float:
        """What activations are multiplied with before training, 1 when they are not scaled."""
        factor = getattr(self.sae, "activation_norm_scaling_factor", None)
        return 1.0 if factor is None or not self.needs_dataset_norm else float(factor)

    def set_dataset_average_activation_norm(self, norms: Mapping[str, float]) -> None:
        """Scale activations so that their mean norm becomes the root of d_in."""
        norm = float(norms[self.hook_point_in])
        self.sae.activation_norm_scaling_factor = self.sae.cfg.d_in**0.5 / norm  # type: ignore[assignment]

    def normalize_activations(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with scaled activations. Per-token normalisation is inside the SAE."""
        scaled = dict(batch)
        for name in {self.hook_point_in, self.hook_point_out}:
            scaled[name] = self._activations(batch, name) * self.scaling_factor
        return scaled

    def denormalize_activations(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `normalize_activations`."""
        raw = dict(batch)
        for name in {self.hook_point_in, self.hook_point_out}:
            raw[name] = self._activations(batch, name) / self.scaling_factor
        return raw

    def token_batch(self, batch: Mapping[str, Tensor]) -> TokenBatch:
        """Rows of the tokens that are not masked, on the SAE's device."""
        rows = []
        for name in (self.hook_point_in, self.hook_point_out):
            acts = self._activations(batch, name).to(self.sae.device, self.sae.dtype)
            acts = acts.reshape(-1, acts.shape[-1])
            mask = batch.get("mask")
            rows.append(acts if mask is None else acts[mask.reshape(-1).to(acts.device).bool()])
        return TokenBatch(*rows)

    @staticmethod
    def _activations(batch: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in batch:
            raise ValueError(f"The batch has no activations of {name!r}; it has {sorted(batch)}.")
        return batch[name]

    @property
    def has_thresholds(self) -> bool:
        """Whether features have learned thresholds."""
        return str(self.sae.cfg.architecture).startswith("jumprelu")

    # -- the model --------------------------------------------------------------------------------

    def encode(self, x: Float[Tensor, "tokens d_in"]) -> TrainingEncoding:
        """Features, and the pre-activations they were made of."""
        return self.sae.encode_for_training(x)

    def decode(self, feature_acts: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "tokens d_out"]:
        """Reconstruction from features."""
        return self.sae.decode(feature_acts)

    @property
    def rescales(self) -> bool:
        """Whether features already contain their decoder's norm."""
        return bool(getattr(self.sae, "rescales_acts", False))

    def compute_loss(
        self,
        batch: Mapping[str, Tensor],
        *,
        l1_coefficient: float = 1.0,
        lp_coefficient: float | None = None,
        auxk_coefficient: float | None = None,
        sparsity_loss_type: SparsityLossName | None = None,
        tanh_stretch_coefficient: float = 4.0,
        frequency_scale: float = 0.01,
        p: int = 1,
        k_aux: int = 512,
        is_dead: Bool[Tensor, " d_sae"] | None = None,
    ) -> LossParts:
        """The loss of a (normalised) batch.

        `l_rec` is the mean over tokens of the squared error. Sparsity is that of features times
        decoder norms, `l_p` (JumpReLU) is `lp_coefficient` times the mean over tokens of
        `sum_i relu(threshold_i - h_i) norm_i`, and `l_aux` lets dead features model the detached
        residual.
        """
        sae = self.sae
        sae.prepare_training_pass()
        x, label = self.token_batch(batch)
        encoding = self.encode(x)
        features, hidden_pre = encoding.feature_acts, encoding.hidden_pre
        recons = self.decode(features)
        if isinstance(sae, TranscoderTraining):
            recons = sae.with_skip(recons, x)
        parts: dict[str, Tensor | None] = {"l_s": None, "l_p": None, "l_aux": None}
        l_rec = sae.mse_loss_fn(recons, label).sum(dim=-1).mean()
        if sparsity_loss_type is not None:
            weighted = features if self.rescales else features * row_norms(sae.W_dec)
            parts["l_s"] = l1_coefficient * sparsity_loss(
                sparsity_loss_type, weighted, p, tanh_stretch_coefficient, frequency_scale
            )
        if lp_coefficient and self.has_thresholds:
            below = torch.relu(sae.threshold - hidden_pre) * row_norms(sae.W_dec)
            parts["l_p"] = lp_coefficient * below.sum(dim=-1).mean()
        if auxk_coefficient:
            parts["l_aux"] = auxk_coefficient * self._aux_loss(
                hidden_pre, label - recons, k_aux, is_dead
            )
        if sae.training and isinstance(sae, BatchTopKTrainingSAE):
            sae.update_topk_threshold(features)
        loss = l_rec
        for part in parts.values():
            loss = loss if part is None else loss + part
        return LossParts(
            loss=loss,
            l_rec=l_rec,
            encoding=encoding,
            label=label,
            reconstruction=recons,
            **parts,
        )

    def _aux_loss(
        self,
        hidden_pre: Tensor,
        residual: Tensor,
        k_aux: int,
        is_dead: Bool[Tensor, " d_sae"] | None,
    ) -> Tensor:
        if is_dead is None or not bool(is_dead.any()):
            return residual.new_zeros(())
        dead = is_dead.nonzero().squeeze(1)
        hidden, W_dec = hidden_pre[:, dead], self.sae.W_dec[dead]
        if self.rescales:
            hidden = hidden / row_norms(W_dec).clamp(min=1e-30)
        by_norm = self.rescales or bool(self.sae.cfg.scale_sparsity_penalty_by_decoder_norm)
        return dead_feature_reconstruction_loss(residual, hidden, W_dec, k_aux, by_norm)

    # -- k, norms, parameters ---------------------------------------------------------------------

    @property
    def current_k(self) -> int | None:
        """Features per token; None for activation functions without a k."""
        return getattr(self.sae.activation_fn, "k", None)

    def set_current_k(self, k: int) -> None:
        """Select that many features per token from now on."""
        if self.current_k is None:
            raise ValueError(
                f"The activation function of a {str(self.sae.cfg.architecture)!r} SAE has no k."
            )
        self.sae.activation_fn.k = k  # type: ignore[assignment]

    @torch.no_grad()
    def set_decoder_norm(self, norm: float) -> None:
        """Give every decoder row that norm."""
        unit_rows_(self.sae.W_dec.data, norm)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by group: thresholds are "jumprelu", the rest "others"."""
        groups: dict[str, list[nn.Parameter]] = {"others": [], "jumprelu": []}
        for name, parameter in self.sae.named_parameters():
            if parameter.requires_grad:
                is_threshold = name in ("threshold", "log_threshold")
                groups["jumprelu" if is_threshold else "others"].append(parameter)
        return groups

    @torch.no_grad()
    def log_statistics(self) -> dict[str, float]:
        """Numbers about the weights, by the names under which they are logged."""
        sae = self.sae
        values = {
            "metrics/encoder_norm": sae.W_enc.norm(dim=0).mean().item(),
            "metrics/decoder_norm": row_norms(sae.W_dec).mean().item(),
            "metrics/decoder_bias_norm": sae.b_dec.norm().item(),
        }
        if self.current_k is not None:
            values["sparsity/k"] = self.current_k
        if self.has_thresholds:
            values["metrics/mean_jumprelu_threshold"] = sae.threshold.mean().item()
        return values


def fold_dataset_norm(sae: TrainingSAE) -> TrainingSAE:
    """A copy that works on raw activations: the scaling factor is folded into its weights."""
    folded = copy.deepcopy(sae)
    adapter = SAEAdapter(folded)
    if adapter.needs_dataset_norm:
        folded.fold_activation_norm_scaling_factor(adapter.scaling_factor)
        folded.activation_norm_scaling_factor = None  # type: ignore[assignment]
    return folded


def as_adapter(sae: Any) -> SAEAdapter:
    """The adapter of an SAE, or the one given."""
    return sae if isinstance(sae, SAEAdapter) else SAEAdapter(sae)
