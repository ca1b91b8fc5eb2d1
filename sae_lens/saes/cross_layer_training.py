"""Training cross-layer transcoders: an SAE's training, from all MLPs' inputs to all their outputs.

    loss = sum_m |y_m - y_m'|^2 + the terms of the SAE of the same name

A batch is inputs and outputs side by side, [batch, 2 layers * d_in]. Ameisen et al. 2025 (see
`cross_layer_transcoder.py`) train JumpReLU with `lambda sum tanh(c |W_dec,i| f_i)` and a term that
keeps features alive, which are the defaults of the jumprelu form here (`jumprelu.py` has the
formulas); ReLU pays for `|W_dec,i| f_i`. topk keeps k features per token in each layer. batchtopk
keeps k times the layers per token on average, wherever in the batch and whichever layer they are.

Saved for inference, batchtopk becomes a jumprelu cross-layer transcoder with its running threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.kernels.active_entries import ActiveEntries
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.autograd import Decoded, hidden_at_entries, sparse_decode_with_norms
from sae_lens.kernels.filled_entries import find_entries
from sae_lens.kernels.top_entries import top_entries
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.batch_topk import BatchTopK, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.cross_layer_entries import (
    LayeredActiveSet,
    are_among_largest,
    largest_of_all,
    with_counts,
)
from sae_lens.saes.cross_layer_transcoder import (
    CLT_KEYS,
    CrossLayerFields,
    CrossLayerMaps,
    LayerTopK,
    RankedByDecoderNorm,
    ThresholdsByLayer,
    TopKByLayer,
)
from sae_lens.saes.dead_features import may_look_at
from sae_lens.saes.jumprelu import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.several_hooks import SeveralHooksTraining
from sae_lens.saes.sparse_training import capacity_of
from sae_lens.saes.standard import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.training_step import (
    SparseTrainingEncoding,
    TrainStepInput,
    TrainStepOutput,
    as_step_input,
)

_TOPK_KEYS = ("k", "rescale_acts_by_decoder_norm", *CLT_KEYS)


class CrossLayerTraining(CrossLayerMaps, SeveralHooksTraining):
    """The part of every cross-layer transcoder's training that differs from an SAE's."""

    @torch.no_grad()
    def _encoder_from_decoder(self) -> None:
        """Encoder columns of the norm of a decoder: what is read is no reconstruction's space."""
        for W in self.encoders():
            W.data.mul_(self.cfg.decoder_init_norm / W.data.norm(dim=0).clamp(min=1e-30))

    def training_forward_pass(
        self,
        sae_in: Tensor | TrainStepInput | None = None,
        current_l1_coefficient: float | None = None,
        dead_neuron_mask: Tensor | None = None,
        *,
        step_input: TrainStepInput | None = None,
    ) -> TrainStepOutput:
        """Features, outputs and loss of one batch, [batch, 2 layers, d_in] or rows of it.

        The `sae_in` of the result is what was modelled. The result holds rows.
        """
        step = as_step_input(sae_in, current_l1_coefficient, dead_neuron_mask, step_input)
        if step.sae_in.ndim == 3:
            step = replace(step, sae_in=step.sae_in.flatten(1))
        return super().training_forward_pass(step_input=step)

    def split_batch(
        self, batch: Float[Tensor, "batch both"]
    ) -> tuple[Float[Tensor, "batch read"], Float[Tensor, "batch written"]]:
        """Inputs and outputs of rows that hold both.

        Raises:
            ValueError: when the rows have another width.
        """
        read = self.n_hooks * self.d_in_of_hook
        if batch.shape[-1] != 2 * read:
            raise ValueError(
                "A batch for a cross-layer transcoder holds inputs and outputs of all layers side "
                f"by side, 2 * {self.n_hooks} * {self.d_in_of_hook} wide; this one is "
                f"{batch.shape[-1]} wide."
            )
        return batch[..., :read], batch[..., read:]

    # -- the sparse form --------------------------------------------------------------------------

    def sparse_encode_for_training(self, x: Tensor) -> SparseTrainingEncoding:
        """As an SAE of this kind, whose entries are found and decoded layer by layer here."""
        return super().sparse_encode_for_training(x)

    def entries_above(
        self, x: Float[Tensor, "batch read"], lower: Float[Tensor, " d_sae"]
    ) -> tuple[ActiveSet, Float[Tensor, " nnz"]]:
        """Entries whose pre-activation exceeds `lower`, and the pre-activations there."""
        with torch.no_grad():
            found = [
                find_entries(xl, W, b, low, self._workspace, capacity_of(self, x, layer))
                for layer, ((xl, W, b), low) in enumerate(
                    zip(self._layers(x), lower.split(self.d_sae_of_hook), strict=True)
                )
            ]
        return self._joined(x, found)

    def _layers(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What is read, the encoder and its bias, for each layer."""
        inputs = [part.contiguous() for part in x.split(self.d_in_of_hook, dim=-1)]
        biases = self.b_enc.split(self.d_sae_of_hook)
        return list(zip(inputs, self.encoders(), biases, strict=True))

    def _joined(
        self, x: Tensor, found: list[ActiveEntries]
    ) -> tuple[LayeredActiveSet, Float[Tensor, " nnz"]]:
        """The entries of all layers, and the pre-activations there with their gradients."""
        hidden = [
            hidden_at_entries(xl, None, W, b, part, self._workspace)
            for (xl, W, b), part in zip(self._layers(x), found, strict=True)
        ]
        active = LayeredActiveSet([part.active for part in found])
        return active, torch.cat(hidden)[active.order]

    def sparse_decode(self, values: Float[Tensor, "sets nnz"], active: ActiveSet) -> Decoded:
        """What values at the entries write to all layers, and the decoder norms if needed."""
        assert isinstance(active, LayeredActiveSet)
        needs_norms = self.needs_decoder_norms()
        decoded = [
            sparse_decode_with_norms(v.contiguous(), W, part, self._workspace, needs_norms)
            for v, W, part in zip(
                active.by_layer(values), self.decoders(), active.parts, strict=True
            )
        ]
        norms = [part.norms for part in decoded if part.norms is not None]
        recons = self._summed([part.recons for part in decoded])
        return Decoded(recons, torch.cat(norms) if needs_norms else None)

    # -- initial values and files -----------------------------------------------------------------

    def initialize_b_dec_with_precalculated(self, origin: Tensor) -> None:
        """Set the decoder biases; of a row of inputs and outputs, the outputs' part."""
        super().initialize_b_dec_with_precalculated(origin[-len(self.b_dec) :])

    def initialize_b_dec_with_mean(self, all_activations: Tensor) -> None:
        """Set the decoder biases to the mean outputs."""
        super().initialize_b_dec_with_mean(all_activations[:, -len(self.b_dec) :])

    def inference_components(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and tensors of the cross-layer transcoder that this one becomes."""
        values, state_dict = super().inference_components()
        threshold = state_dict.get("threshold")
        if threshold is not None and threshold.ndim == 1:
            state_dict["threshold"] = threshold.unflatten(0, (self.n_hooks, -1))
        architecture = str(self.cfg.architecture).replace("batchtopk_", "jumprelu_")
        return {**values, "architecture": architecture}, state_dict


class LayerBatchTopK(BatchTopK):
    """The largest entries of the whole batch, k for each token and layer on average."""

    def __init__(self, k: float, n_layers: int):
        super().__init__(k)
        self.n_layers = n_layers

    def forward(self, x: Tensor) -> Tensor:
        """Select over all dimensions of [..., features of all layers]."""
        acts = torch.relu(x)
        flat = acts.flatten()
        n_kept = self.n_kept(acts.numel() // acts.shape[-1], acts.numel())
        top = torch.topk(flat, n_kept, sorted=False)
        return torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(acts)

    def n_kept(self, n_tokens: int, n_entries: int) -> int:
        """How many entries of a batch are kept."""
        return min(int(self.k * self.n_layers * n_tokens), n_entries)


# -- relu and jumprelu ----------------------------------------------------------------------------


@dataclass(kw_only=True)
class CrossLayerTranscoderTrainingConfig(CrossLayerFields, StandardTrainingSAEConfig):
    """Config of a `CrossLayerTranscoderTrainingSAE`: the hooks, and that of a standard SAE."""

    architecture: str = "cross_layer_transcoder"


@dataclass(kw_only=True)
class JumpReLUCrossLayerTranscoderTrainingConfig(CrossLayerFields, JumpReLUTrainingSAEConfig):
    """Config of a `JumpReLUCrossLayerTranscoderTrainingSAE`: the hooks, and that of jumprelu.

    Attributes:
        jumprelu_sparsity_loss_mode: "tanh", as in the paper, "step" or "quadratic".
        jumprelu_ste_to_input: whether the pseudo-gradient also reaches the pre-activations.
        pre_act_loss_coefficient: weight of the term that keeps features alive.
    """

    architecture: str = "jumprelu_cross_layer_transcoder"
    jumprelu_sparsity_loss_mode: Literal["step", "tanh", "quadratic"] = "tanh"
    jumprelu_ste_to_input: bool = True
    pre_act_loss_coefficient: float | None = 3e-6


class CrossLayerTranscoderTrainingSAE(CrossLayerTraining, StandardTrainingSAE):
    """Features by ReLU."""

    architecture = "cross_layer_transcoder"


class JumpReLUCrossLayerTranscoderTrainingSAE(
    CrossLayerTraining, ThresholdsByLayer, JumpReLUTrainingSAE
):
    """Features by learned thresholds."""

    architecture = "jumprelu_cross_layer_transcoder"


# -- those that select ----------------------------------------------------------------------------


@dataclass(kw_only=True)
class TopKCrossLayerTranscoderTrainingConfig(CrossLayerFields, TopKTrainingSAEConfig):
    """Config of a `TopKCrossLayerTranscoderTrainingSAE`: the hooks, and that of a topk SAE.

    Attributes:
        k: features per token in each layer.
    """

    architecture: str = "topk_cross_layer_transcoder"

    nested_keys: ClassVar[tuple[str, ...]] = _TOPK_KEYS


@dataclass(kw_only=True)
class BatchTopKCrossLayerTranscoderTrainingConfig(CrossLayerFields, BatchTopKTrainingSAEConfig):
    """Config of a `BatchTopKCrossLayerTranscoderTrainingSAE`: the hooks, and that of batchtopk.

    Attributes:
        k: features per token and layer, on average over both.
    """

    architecture: str = "batchtopk_cross_layer_transcoder"

    nested_keys: ClassVar[tuple[str, ...]] = _TOPK_KEYS


class TopKCrossLayerTranscoderTrainingSAE(CrossLayerTraining, TopKByLayer, TopKTrainingSAE):
    """The k largest activations of each token in each layer."""

    architecture = "topk_cross_layer_transcoder"

    def has_sparse_form(self) -> bool:
        """With ReLU after the selection."""
        selection = self.activation_fn
        return type(selection) is LayerTopK and type(selection.postact_fn) is nn.ReLU

    def _entries_to_select(self, batch: int) -> int:
        return self._selection.k * batch * self.n_hooks

    def _selected_entries(
        self, x: Tensor, scale: Tensor | None
    ) -> tuple[ActiveSet, Float[Tensor, " nnz"]]:
        scales = [None] * self.n_hooks if scale is None else scale.split(self.d_sae_of_hook)
        with torch.no_grad():
            found = [
                top_entries(xl, W, b, s, self._selection.k, False, self._workspace)
                for (xl, W, b), s in zip(self._layers(x), scales, strict=True)
            ]
        return self._joined(x, found)


class BatchTopKCrossLayerTranscoderTrainingSAE(
    CrossLayerTraining, RankedByDecoderNorm, BatchTopKTrainingSAE
):
    """The largest activations of the whole batch."""

    architecture = "batchtopk_cross_layer_transcoder"

    def _make_activation_fn(self) -> nn.Module:
        return LayerBatchTopK(self.cfg.activation_fn_kwargs["k"], self.n_hooks)

    def activate_hook(self, here: slice, hidden_pre: Tensor) -> Tensor:
        """Those of one layer above the running threshold: a layer cannot wait for later ones."""
        ranked = self.ranked(here, hidden_pre)
        return torch.relu(ranked) * (ranked > self.topk_threshold).to(ranked.dtype)

    def has_sparse_form(self) -> bool:
        """With this architecture's own selection."""
        return type(self.activation_fn) is LayerBatchTopK

    def _entries_to_select(self, batch: int) -> int:
        selection = cast(LayerBatchTopK, self.activation_fn)
        return selection.n_kept(batch, batch * self.cfg.d_sae)

    def _selected_entries(
        self, x: Tensor, scale: Tensor | None
    ) -> tuple[ActiveSet, Float[Tensor, " nnz"]]:
        n_kept = self._entries_to_select(len(x))
        scales = [None] * self.n_hooks if scale is None else scale.split(self.d_sae_of_hook)
        n_positions = len(x) * self.d_sae_of_hook
        most = min(n_kept, n_positions)
        capacities = [capacity_of(self, x, layer) for layer in range(self.n_hooks)]
        known = [None if c is None else c.room(n_positions) for c in capacities]
        rooms = [most if n is None else min(most, n) for n in known]
        with torch.no_grad():
            # what is among the largest of all is among the largest of its layer
            found = [
                top_entries(xl, W, b, s, room, True, self._workspace)
                for (xl, W, b), s, room in zip(self._layers(x), scales, rooms, strict=True)
            ]
        if may_look_at(x):
            return self._joined(x, largest_of_all(found, scales, n_kept))
        are_kept = are_among_largest(found, scales, n_kept)
        found = with_counts(found, are_kept, rooms, most)
        for capacity, part, room in zip(capacities, found, rooms, strict=True):
            if capacity is not None and part.active.count is not None:
                capacity.observe(part.active.count, room, n_positions)
        active, hidden = self._joined(x, found)
        return active, hidden.masked_fill(~torch.cat(are_kept)[active.order], 0.0)


for _sae_class, _config_class in (
    (CrossLayerTranscoderTrainingSAE, CrossLayerTranscoderTrainingConfig),
    (JumpReLUCrossLayerTranscoderTrainingSAE, JumpReLUCrossLayerTranscoderTrainingConfig),
    (TopKCrossLayerTranscoderTrainingSAE, TopKCrossLayerTranscoderTrainingConfig),
    (BatchTopKCrossLayerTranscoderTrainingSAE, BatchTopKCrossLayerTranscoderTrainingConfig),
):
    register_sae_training_class(_sae_class.architecture, _sae_class, _config_class)
