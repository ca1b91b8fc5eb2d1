"""Training crosscoders: an SAE's training over the rows of several hooks.

    loss = sum_h |x_h - x_h'|^2 + the terms of the SAE of the same name

in which the decoder norm of a feature is the sum of its norms over the hooks (see `crosscoder.py`).
Lindsey et al. 2024 train with ReLU and `sum_i f_i sum_h |W_dec[i, h]|`. BatchTopK, which selects by
`f_i sum_h |W_dec[i, h]|`: Minder, Dumas, Juang, Chughtai & Nanda 2025, "Overcoming Sparsity
Artifacts in Crosscoders to Interpret Chat-Tuning" (arXiv:2504.02922). TopK and JumpReLU are the
same with their selections.

Saved for inference, batchtopk becomes a jumprelu crosscoder with its running threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.autograd import Decoded, sparse_decode_with_norms
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.batch_topk import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.crosscoder import (
    CROSSCODER_KEYS,
    CrosscoderFields,
    CrosscoderMaps,
)
from sae_lens.saes.jumprelu import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.several_hooks import SeveralHooksTraining
from sae_lens.saes.standard import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.training_step import (
    SparseTrainingEncoding,
    TrainStepInput,
    TrainStepOutput,
    as_step_input,
)

_TOPK_KEYS = ("k", "rescale_acts_by_decoder_norm", *CROSSCODER_KEYS)


class CrosscoderTraining(CrosscoderMaps, SeveralHooksTraining):
    """The part of every crosscoder's training that differs from an SAE's."""

    def training_forward_pass(
        self,
        sae_in: Tensor | TrainStepInput | None = None,
        current_l1_coefficient: float | None = None,
        dead_neuron_mask: Tensor | None = None,
        *,
        step_input: TrainStepInput | None = None,
    ) -> TrainStepOutput:
        """Features, reconstruction and loss of one batch, [batch, hooks, d_in] or rows of it.

        The result holds rows.
        """
        step = as_step_input(sae_in, current_l1_coefficient, dead_neuron_mask, step_input)
        step = replace(step, sae_in=self.reshape_fn_in(step.sae_in))
        return super().training_forward_pass(step_input=step)

    def sparse_encode_for_training(self, x: Tensor) -> SparseTrainingEncoding:
        """As an SAE of this kind: what is different here holds for the sparse form as well."""
        return super().sparse_encode_for_training(x)

    def sparse_decode(self, values: Float[Tensor, "sets nnz"], active: ActiveSet) -> Decoded:
        """What values at the entries sum up to, and the norms that are a crosscoder's."""
        return sparse_decode_with_norms(
            values,
            self.W_dec,
            active,
            self._workspace,
            with_norms=self.needs_decoder_norms(),
            n_blocks=self.n_hooks if self.cfg.decoder_norm == "sum" else 1,
        )

    def inference_components(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and tensors of the crosscoder that this one becomes."""
        values, state_dict = super().inference_components()
        return {**values, "architecture": _saved_as(str(self.cfg.architecture))}, state_dict


def _saved_as(architecture: str) -> str:
    return "jumprelu_crosscoder" if architecture == "batchtopk_crosscoder" else architecture


@dataclass(kw_only=True)
class CrosscoderTrainingConfig(CrosscoderFields, StandardTrainingSAEConfig):
    """Config of a `CrosscoderTrainingSAE`: the hooks, and that of a standard SAE."""

    architecture: str = "crosscoder"


@dataclass(kw_only=True)
class JumpReLUCrosscoderTrainingConfig(CrosscoderFields, JumpReLUTrainingSAEConfig):
    """Config of a `JumpReLUCrosscoderTrainingSAE`: the hooks, and that of a jumprelu SAE."""

    architecture: str = "jumprelu_crosscoder"


@dataclass(kw_only=True)
class TopKCrosscoderTrainingConfig(CrosscoderFields, TopKTrainingSAEConfig):
    """Config of a `TopKCrosscoderTrainingSAE`: the hooks, and that of a topk SAE."""

    architecture: str = "topk_crosscoder"

    nested_keys: ClassVar[tuple[str, ...]] = _TOPK_KEYS


@dataclass(kw_only=True)
class BatchTopKCrosscoderTrainingConfig(CrosscoderFields, BatchTopKTrainingSAEConfig):
    """Config of a `BatchTopKCrosscoderTrainingSAE`: the hooks, and that of a batchtopk SAE."""

    architecture: str = "batchtopk_crosscoder"

    nested_keys: ClassVar[tuple[str, ...]] = _TOPK_KEYS


class CrosscoderTrainingSAE(CrosscoderTraining, StandardTrainingSAE):
    """Features by ReLU, sparsity by a p-norm."""

    architecture = "crosscoder"


class JumpReLUCrosscoderTrainingSAE(CrosscoderTraining, JumpReLUTrainingSAE):
    """Features by learned thresholds."""

    architecture = "jumprelu_crosscoder"


class TopKCrosscoderTrainingSAE(CrosscoderTraining, TopKTrainingSAE):
    """The k largest activations of each token."""

    architecture = "topk_crosscoder"


class BatchTopKCrosscoderTrainingSAE(CrosscoderTraining, BatchTopKTrainingSAE):
    """The largest activations of the whole batch."""

    architecture = "batchtopk_crosscoder"


for _sae_class, _config_class in (
    (CrosscoderTrainingSAE, CrosscoderTrainingConfig),
    (JumpReLUCrosscoderTrainingSAE, JumpReLUCrosscoderTrainingConfig),
    (TopKCrosscoderTrainingSAE, TopKCrosscoderTrainingConfig),
    (BatchTopKCrosscoderTrainingSAE, BatchTopKCrosscoderTrainingConfig),
):
    register_sae_training_class(_sae_class.architecture, _sae_class, _config_class)
