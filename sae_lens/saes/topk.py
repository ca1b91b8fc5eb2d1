"""TopK SAE: keep the k largest pre-activations of each token.

    h = (x - b_dec) W_enc + b_enc,  f = relu of the k largest h, zero elsewhere

Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093), sections 2.3 and
2.4. Loss: mean squared error plus aux-k, in which dead features model the residual. The residual is
detached, so that the auxiliary term does not pull on the live reconstruction.

v5 form: aux-k with d_sae // 2 features, decoded with the decoder bias. v6 form: d_in // 2 features,
without the bias, times `aux_loss_coefficient`; and with `rescale_acts_by_decoder_norm` selection is
by h times the decoder norm, and features are divided by that norm before decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.kernels.active_entries import ActiveEntries
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.top_entries import top_entries
from sae_lens.number_kinds import is_number
from sae_lens.registry import register_sae_class, register_sae_training_class
from sae_lens.saes.activation_fns import TopK
from sae_lens.saes.base import SAE, logger
from sae_lens.saes.config import ArchitectureSAEConfig, ArchitectureTrainingSAEConfig
from sae_lens.saes.dead_features import dead_features_of, may_look_at
from sae_lens.saes.losses import reconstruction_error, topk_aux_acts
from sae_lens.saes.sparse_training import (
    centred,
    finish_decoding,
    hidden_pre_of,
    scaled_for_decoding,
    with_gradient,
)
from sae_lens.saes.training import TrainingEncoding, TrainingSAE, TrainStepInput
from sae_lens.saes.training_step import SparseTrainingDecoding, SparseTrainingEncoding
from sae_lens.saes.weights import decoder_norms_for_folding, divisors, fold_decoder_norms_


@dataclass(kw_only=True)
class TopKSAEConfig(ArchitectureSAEConfig):
    """Config of a `TopKSAE`.

    Attributes:
        k: features per token.
        rescale_acts_by_decoder_norm: select by pre-activation times decoder norm.
    """

    architecture: str = "topk"
    activation_fn_str: str = "topk"
    k: int = 100
    rescale_acts_by_decoder_norm: bool = False

    nested_keys: ClassVar[tuple[str, ...]] = ("k", "rescale_acts_by_decoder_norm")
    #: whether k is an average, which need not be a whole number
    takes_shares_of_k: ClassVar[bool] = False

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        check_k(self.k, self.d_sae, self.takes_shares_of_k)
        if not self.takes_shares_of_k:
            self.k = int(self.k)
        self.activation_fn_kwargs = {**self.activation_fn_kwargs, "k": self.k}

    @classmethod
    def _from_flat(cls, flat: dict[str, Any]) -> Any:
        k = (flat.get("activation_fn_kwargs") or {}).get("k", flat.get("k"))
        return super()._from_flat(flat if k is None else {**flat, "k": k})


@dataclass(kw_only=True)
class TopKTrainingSAEConfig(TopKSAEConfig, ArchitectureTrainingSAEConfig):
    """Config of a `TopKTrainingSAE`.

    Attributes:
        k: features per token.
        use_sparse_activations: hand features on as a sparse tensor.
        aux_loss_coefficient: weight of the aux-k term.
        rescale_acts_by_decoder_norm: select by pre-activation times decoder norm.
    """

    use_sparse_activations: bool = False
    aux_loss_coefficient: float = 1.0
    rescale_acts_by_decoder_norm: bool = True

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        selects_with_it = str(self.architecture) in ("topk", "topk_crosscoder")
        if selects_with_it and self.activation_fn_str != "topk":
            raise ValueError(
                f"activation_fn_str is {self.activation_fn_str!r}; that of {self.architecture} "
                "SAEs is 'topk', which selects features. Leave it out."
            )


def check_k(k: Any, d_sae: int, takes_shares: bool = True) -> None:
    """`ValueError` unless k is a number with 0 < k <= d_sae, and whole unless it is an average."""
    if not is_number(k):
        raise ValueError(f"k is {k!r}; it must be a number of features.")
    if not 0 < k <= d_sae:
        raise ValueError(f"k is {k}; it must lie between 1 and the number of features, {d_sae}.")
    if not takes_shares and k != int(k):
        raise ValueError(
            f"k is {k}; features of each token are kept, a whole number. A share of them on "
            "average is for batchtopk."
        )


class TopKSAE(SAE):
    """See the module's text."""

    architecture = "topk"

    def initialize_weights(self) -> None:
        """`b_enc`, `W_dec`, `W_enc`, `b_dec`."""
        check_k(self.cfg.activation_fn_kwargs["k"], self.cfg.d_sae)
        self.initialize_weights_basic()

    def selection_rank(self, hidden_pre: Tensor) -> Tensor:
        """By what features are selected: their (rescaled) pre-activation."""
        return hidden_pre

    @property
    def rescales_acts(self) -> bool:
        """Whether features are selected by pre-activation times decoder norm."""
        return bool(getattr(self.cfg, "rescale_acts_by_decoder_norm", False))

    def rescaled_hidden_pre(self, x: Tensor) -> Tensor:
        """Pre-activations of `x`, times the decoder norms when rescaling; fires the hook."""
        hidden_pre = self.linear_encode(self.process_sae_in(x))
        if self.rescales_acts:
            hidden_pre = hidden_pre * self.decoder_norms()
        return self.hook_sae_acts_pre(hidden_pre)

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, [..., d_in] to [..., d_sae]."""
        return self.hook_sae_acts_post(self.activation_fn(self.rescaled_hidden_pre(x)))

    def apply_finetuning_scaling_factor(self, feature_acts: Tensor) -> Tensor:
        """What is decoded: features times the fine-tuned factor, over the norms when rescaling."""
        feature_acts = super().apply_finetuning_scaling_factor(feature_acts)
        if self.rescales_acts:
            feature_acts = feature_acts / divisors(self.decoder_norms())
        return feature_acts

    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Unit decoder rows. Exact when rescaling; otherwise the selection may change (warned)."""
        norms = divisors(self.decoder_norms())
        unit = torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
        if not self.rescales_acts and not unit:
            logger.warning(
                "Folding decoder norms into a topk SAE changes which k features are the largest; "
                "reconstructions stay the same only where the selection does."
            )
        self.divide_decoder_(norms, self.b_enc.data)

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Fold the norms of a rescaling SAE, since readers of flat files do not know the option."""
        if self.rescales_acts and not isinstance(self, TrainingSAE):
            _fold_state_dict_(state_dict)


def _fold_state_dict_(state_dict: dict[str, Any]) -> None:
    for name in ("W_enc", "W_dec", "b_enc"):
        state_dict[name] = state_dict[name].detach().clone()
    norms = decoder_norms_for_folding(state_dict["W_dec"])
    fold_decoder_norms_(norms, state_dict["W_enc"], state_dict["W_dec"], state_dict["b_enc"])


class TopKTrainingSAE(TrainingSAE, TopKSAE):
    """See the module's text."""

    def encode(self, x: Tensor) -> Tensor:
        """Features by the training encoder, so with noise in training mode."""
        return self.encode_for_training(x).feature_acts

    def encode_for_training(self, x: Tensor) -> TrainingEncoding:
        """Features and the (rescaled, noised) pre-activations they were selected from."""
        hidden_pre = self.add_noise(self.rescaled_hidden_pre(x))
        return TrainingEncoding(self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre)

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """`auxiliary_reconstruction_loss`, 0 when nothing is dead."""
        if step.most_dead == 0:
            return {"auxiliary_reconstruction_loss": sae_out.new_zeros(())}
        loss = self.calculate_topk_aux_loss(
            sae_in=step.sae_in,
            sae_out=sae_out,
            hidden_pre=encoding.hidden_pre,
            dead_neuron_mask=step.dead_neuron_mask,
        )
        return {"auxiliary_reconstruction_loss": loss}

    def aux_loss(
        self,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor | None,
    ) -> Tensor:
        """Aux-k: the error of the dead features' best guess at the residual.

        With D dead features and k0 as in the module's text: the min(k0, D) largest dead
        pre-activations are decoded, and the loss is scaled by min(D / k0, 1).
        """
        if dead_neuron_mask is None:
            return sae_out.new_zeros(())
        v6 = getattr(self, "form", "v5") == "v6"
        k_full = k = (sae_in.shape[-1] if v6 else hidden_pre.shape[-1]) // 2
        n_dead = dead_neuron_mask.sum()
        scale: float | Tensor = (n_dead / k_full).clamp(max=1.0)
        if may_look_at(n_dead):
            k = min(k_full, int(n_dead))
            scale = k / k_full
            if k == 0:
                return sae_out.new_zeros(())
        selection = getattr(self, "selection_rank", None)  # 5.x calls this on any architecture
        aux_acts = topk_aux_acts(k, hidden_pre, dead_neuron_mask, selection)
        residual = (sae_in - sae_out).detach()
        if not v6:
            return scale * reconstruction_error(self.decode(aux_acts), residual)
        if self.rescales_acts:
            aux_acts = aux_acts / divisors(self.decoder_norms())
        loss = reconstruction_error(self.linear_decode(aux_acts), residual)
        return self.cfg.aux_loss_coefficient * scale * loss

    # -- the sparse form --------------------------------------------------------------------------

    def has_sparse_form(self) -> bool:
        """With ReLU after the selection."""
        selection = self.activation_fn
        return type(selection) is TopK and type(selection.postact_fn) is nn.ReLU

    def expected_density(self, batch: int) -> float | None:
        """Known from k."""
        return self._entries_to_select(batch) / (self.cfg.d_sae * max(batch, 1))

    def _entries_to_select(self, batch: int) -> int:
        return self._selection.k * batch

    @property
    def _selection(self) -> TopK:
        return cast(TopK, self.activation_fn)

    def _find_entries(self, centred_in: Tensor, scale: Tensor | None) -> ActiveEntries:
        return top_entries(
            centred_in,
            self.W_enc,
            self.b_enc,
            scale,
            k=self._selection.k,
            over_batch=False,
            workspace=self._workspace,
        )

    def _selected_entries(
        self, x: Tensor, scale: Tensor | None
    ) -> tuple[ActiveSet, Float[Tensor, " nnz"]]:
        with torch.no_grad():
            found = self._find_entries(centred(self, x), scale)
        return found.active, with_gradient(self, x, self.b_enc, found)

    def selected_features(self, hidden_pre: Tensor) -> Tensor:
        """Features from pre-activations that were selected."""
        return torch.relu(hidden_pre)

    def sparse_encode_for_training(self, x: Tensor) -> SparseTrainingEncoding:
        """The selected entries.

        When rescaling, a feature is multiplied by its decoder norm for selecting and divided by it
        for decoding, so that values and gradients of the reconstruction do not depend on the norm.
        """
        with torch.no_grad():
            norms = self.decoder_norms() if self.rescales_acts else None
        active, hidden = self._selected_entries(x, norms)
        features = self.selected_features(hidden)
        decoded = scaled_for_decoding(self, features, active.cols)
        if norms is not None:
            norms = norms.index_select(0, active.cols)
            decoded = decoded * (norms > 0)
            hidden, features = hidden * norms, features * norms
        return SparseTrainingEncoding(active, features, hidden, decoded)

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """As `auxiliary_losses`, dense over the dead features alone."""
        dead = dead_features_of(step)
        if dead is None:
            return {"auxiliary_reconstruction_loss": decoding.sae_out.new_zeros(())}
        v6 = self.form == "v6"
        k_full = (decoding.sae_out.shape[-1] if v6 else self.cfg.d_sae) // 2
        hidden_pre = hidden_pre_of(self, decoding.processed_in, dead.indices)
        # as for the features themselves, the norm matters for the selection alone
        rank = hidden_pre.detach()
        if self.rescales_acts:
            with torch.no_grad():
                norms = self.decoder_norms(dead.indices)
            rank, hidden_pre = rank * norms, hidden_pre * (norms > 0)
        rank, hidden_pre = dead.only(self.selection_rank(rank), -torch.inf), dead.only(hidden_pre)
        chosen = torch.topk(rank, min(k_full, rank.shape[1]), dim=-1, sorted=False).indices
        acts = torch.zeros_like(hidden_pre).scatter(-1, chosen, hidden_pre.gather(-1, chosen))
        residual = (step.sae_in - decoding.sae_out).detach()
        decoded = acts if v6 else scaled_for_decoding(self, acts, dead.indices)
        recons = self.linear_decode_some(decoded, dead.indices)
        if not v6:
            recons = finish_decoding(self, recons)
        loss = dead.share_of(k_full) * reconstruction_error(recons, residual)
        if v6:
            loss = self.cfg.aux_loss_coefficient * loss
        return {"auxiliary_reconstruction_loss": loss}

    def inference_components(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As the base's; the norms of a rescaling SAE are folded."""
        values, state_dict = super().inference_components()
        if self.rescales_acts:
            _fold_state_dict_(state_dict)
        return values, state_dict


register_sae_class("topk", TopKSAE, TopKSAEConfig)
register_sae_training_class("topk", TopKTrainingSAE, TopKTrainingSAEConfig)

__all__ = ["TopK", "TopKSAE", "TopKSAEConfig", "TopKTrainingSAE", "TopKTrainingSAEConfig"]
