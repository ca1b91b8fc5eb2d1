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

from sae_lens.lm_saes.loss import L0Loss, L0Term, LmSaesTerms, SparsityLossType
from sae_lens.saes import TrainingSAE
from sae_lens.saes.sparsity_losses import SparsityTerm
from sae_lens.saes.training_step import (
    LossTerms,
    TrainingEncoding,
    TrainStepInput,
    TrainStepOutput,
    reported_features,
)
from sae_lens.saes.weights import row_norms, unit_rows_
from sae_lens.saes.whitening import WHITENING
from sae_lens.training.dead_feature_terms import DeadFeatureTerms
from sae_lens.training.optim import parameters_by_group

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
    output: TrainStepOutput
    """what the training pass gave"""

    @property
    def feature_acts(self) -> Float[Tensor, "tokens d_sae"]:
        """Features in the form in which they were computed, dense or sparse."""
        return reported_features(self.output)

    @property
    def label(self) -> Float[Tensor, "tokens d_out"]:
        """What is reconstructed."""
        return self.output.sae_in

    @property
    def reconstruction(self) -> Float[Tensor, "tokens d_out"]:
        """The reconstruction."""
        return self.output.sae_out


class TokenBatch(NamedTuple):
    """The tokens of a batch that count, one row each."""

    x: Float[Tensor, "tokens d_in"]
    label: Float[Tensor, "tokens d_out"]

    @property
    def rows(self) -> Float[Tensor, "tokens width"]:
        """What a training pass takes: the input, with the label beside it where they differ."""
        return self.x if self.label is self.x else torch.cat((self.x, self.label), dim=-1)

    def shorter_than(self, limit: float | None) -> TokenBatch:
        """The tokens whose input is no longer than `limit`."""
        if limit is None:
            return self
        kept = self.x.float().norm(dim=-1) <= limit
        x = self.x[kept]
        return TokenBatch(x, x if self.label is self.x else self.label[kept])


class SAEAdapter:
    """A `TrainingSAE` with the calls of Language-Model-SAEs.

    Raises:
        ValueError: for an architecture whose loss has further parts, or whitened activations.
    """

    def __init__(self, sae: TrainingSAE) -> None:
        if str(sae.cfg.architecture) not in ARCHITECTURES:
            raise ValueError(
                f"The architecture {str(sae.cfg.architecture)!r} cannot be trained here; these "
                f"can: {', '.join(ARCHITECTURES)}. Use SAETrainer for the others."
            )
        if sae.cfg.normalize_activations == WHITENING:
            raise ValueError(
                "normalize_activations='whitening' needs statistics that are taken by SAETrainer; "
                "train such an SAE with that one."
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
        x = self._rows(batch, self.hook_point_in)
        if self.hook_point_out == self.hook_point_in:
            return TokenBatch(x, x)
        return TokenBatch(x, self._rows(batch, self.hook_point_out))

    def _rows(self, batch: Mapping[str, Tensor], name: str) -> Float[Tensor, "tokens width"]:
        acts = self._activations(batch, name).to(self.sae.device, self.sae.dtype)
        acts = acts.reshape(-1, acts.shape[-1])
        mask = batch.get("mask")
        return acts if mask is None else acts[mask.reshape(-1).to(acts.device).bool()]

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

    def compute_loss(
        self,
        batch: Mapping[str, Tensor] | TokenBatch,
        *,
        l1_coefficient: float = 1.0,
        lp_coefficient: float | None = None,
        auxk_coefficient: float | None = None,
        sparsity_loss_type: SparsityLossType | None = None,
        tanh_stretch_coefficient: float = 4.0,
        frequency_scale: float = 0.01,
        p: float = 1,
        k_aux: int = 512,
        is_dead: Bool[Tensor, " d_sae"] | None = None,
        ghost_gradients: bool = False,
    ) -> LossParts:
        """The loss of a (normalised) batch.

        `l_rec` is the mean over tokens of the squared error. Sparsity is that of features times
        decoder norms, `l_p` (JumpReLU) is `lp_coefficient` times the mean over tokens of
        `sum_i relu(threshold_i - h_i) norm_i`, and `l_aux` lets dead features model the detached
        residual. Ghost gradients, for which there is no part, are in `output.losses`.
        """
        sparsity: SparsityTerm | L0Term | None = None
        if sparsity_loss_type in ("step", "quadratic"):
            sparsity = self.l0_term(sparsity_loss_type)
        elif sparsity_loss_type is not None:
            sparsity = SparsityTerm(
                sparsity_loss_type, p, tanh_stretch_coefficient, frequency_scale
            )
        terms: LossTerms = LmSaesTerms(
            self.sae,
            l1_coefficient,
            lp_coefficient,
            auxk_coefficient,
            sparsity,
            k_aux,
            self.has_thresholds,
        )
        if ghost_gradients:
            terms = DeadFeatureTerms(self.sae, None, ghost_gradients=True, others=terms)
        tokens = batch if isinstance(batch, TokenBatch) else self.token_batch(batch)
        step = TrainStepInput(tokens.rows, {}, is_dead, terms=terms)
        output = self.sae.training_forward_pass(step)
        parts = {name: output.losses.get(name) for name in ("l_s", "l_p", "l_aux")}
        return LossParts(output.loss, output.losses["mse_loss"], **parts, output=output)

    def l0_term(self, kind: L0Loss) -> L0Term:
        """The term of the number of active features.

        Raises:
            ValueError: when features have no thresholds, or the SAE's config no target for it.
        """
        architecture = str(self.sae.cfg.architecture)
        if not self.has_thresholds:
            raise ValueError(
                f"sparsity_loss_type={kind!r} trains thresholds, which a {architecture!r} SAE has "
                "not; use 'power', 'tanh' or 'tanh-quad'."
            )
        if kind == "step":
            return L0Term()
        target = getattr(self.sae.cfg, "target_l0", None)
        if not target:
            raise ValueError(
                "sparsity_loss_type='quadratic' leads to the target_l0 of the SAE's config, such "
                "as JumpReLUTrainingSAEConfig, and there is none."
            )
        return L0Term(target)

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
        return parameters_by_group(self.sae)

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
