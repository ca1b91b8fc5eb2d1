"""What goes into a training pass and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens.kernels.active_set import ActiveSet


class LossTerms(Protocol):
    """All terms of a loss besides `mse_loss`, in a dense form and one of active entries.

    A training SAE is one. Another can take its place in a step, to change or extend the loss.
    """

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """The terms by name, from all features."""
        ...

    def sparse_auxiliary_losses(
        self,
        step: TrainStepInput,
        encoding: SparseTrainingEncoding,
        decoding: SparseTrainingDecoding,
    ) -> dict[str, Tensor]:
        """The same terms, from active entries."""
        ...

    def has_sparse_form(self) -> bool:
        """Whether the second method can be called."""
        ...


@dataclass
class TrainStepInput:
    """What one training pass needs.

    Attributes:
        sae_in: activations, [batch, d_in].
        coefficients: current weight of each sparsity term, by name ("l1", "l0").
        dead_neuron_mask: bool [d_sae], or None.
        n_training_steps: steps already taken.
        is_logging_step: whether this step's metrics will be read.
        most_dead: how many features are dead at most, where somebody knows it without waiting for
            the device.
        terms: what makes the loss's terms besides `mse_loss`; the SAE itself when None.
    """

    sae_in: Float[Tensor, "batch d_in"]
    coefficients: dict[str, float] = field(default_factory=dict)
    dead_neuron_mask: Bool[Tensor, " d_sae"] | None = None
    n_training_steps: int = 0
    is_logging_step: bool = False
    most_dead: int | None = None
    terms: LossTerms | None = None

    def coefficient(self, name: str) -> float:
        """The weight called `name`; a single one under another name serves as well."""
        if name in self.coefficients:
            return self.coefficients[name]
        if len(self.coefficients) == 1:
            return next(iter(self.coefficients.values()))
        raise ValueError(
            f"The coefficient {name!r} is needed and the given ones are {list(self.coefficients)}."
        )


@dataclass
class TrainStepOutput:
    """What one training pass gives.

    Attributes:
        sae_in: the activations, [batch, d_in].
        sae_out: their reconstruction, [batch, d_in].
        feature_acts: features, [batch, d_sae]; a torch COO tensor where the sparse form was asked
            for by name.
        hidden_pre: pre-activations, [batch, d_sae]; in that case a torch COO tensor of those that
            are looked at.
        loss: the scalar to backpropagate.
        losses: its named parts.
        metrics: further numbers worth logging.
        is_incomplete: bool scalar tensor; where it is true, there was no room for all active
            entries, so that `loss` has no gradient and the batch is to be left out. None where
            that cannot be.
    """

    sae_in: Tensor
    sae_out: Tensor
    feature_acts: Tensor
    hidden_pre: Tensor
    loss: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Any] = field(default_factory=dict)
    is_incomplete: Bool[Tensor, ""] | None = None


class SparseTrainStepOutput(TrainStepOutput):
    """What a sparse pass gives to whoever did not ask for one.

    It reads like any other output: `feature_acts` and `hidden_pre` are dense, but are made when
    they are first looked at, which a training loop need not do (see `reported_features`).
    `hidden_pre` is computed with the weights of that moment, so look at it before an update.

    Attributes:
        sparse_feature_acts: features as a torch COO tensor, [batch, d_sae].
    """

    def __init__(
        self,
        sparse_feature_acts: Tensor,
        dense_hidden_pre: Callable[[], Tensor],
        **others: Any,
    ) -> None:
        """Args: `dense_hidden_pre` computes all pre-activations; `others` are further fields."""
        self.sparse_feature_acts = sparse_feature_acts
        self._dense_hidden_pre = dense_hidden_pre
        vars(self).update(others)

    def __getattr__(self, name: str) -> Tensor:
        # only asked for what is not there yet
        if name == "feature_acts":
            self.feature_acts = self.sparse_feature_acts.to_dense()
        elif name == "hidden_pre":
            self.hidden_pre = self._dense_hidden_pre()
        else:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return vars(self)[name]


def reported_features(output: Any) -> Tensor:
    """The features of an output in the form in which they were computed, dense or sparse."""
    sparse = vars(output).get("sparse_feature_acts")
    return output.feature_acts if sparse is None else sparse


class TrainingEncoding(NamedTuple):
    """What a training encoder hands to the loss.

    Attributes:
        feature_acts: [batch, d_sae].
        hidden_pre: [batch, d_sae].
        processed_in: the encoder's (normalised, centred) input, for losses in that space.
        gate_pre: pre-activations of the gate of gated SAEs.
    """

    feature_acts: Tensor
    hidden_pre: Tensor
    processed_in: Tensor | None = None
    gate_pre: Tensor | None = None


class SparseTrainingEncoding(NamedTuple):
    """What a training encoder hands to the sparse form of the loss.

    The entries are all those at which anything has a gradient; elsewhere features are zero.

    Attributes:
        active: the entries.
        feature_values: features there, as they are reported, [nnz].
        hidden_values: pre-activations there, [nnz].
        decoded_values: what is decoded there, [nnz].
        gate_values: activations of the gate of gated SAEs, which are decoded as well.
    """

    active: ActiveSet
    feature_values: Float[Tensor, " nnz"]
    hidden_values: Float[Tensor, " nnz"]
    decoded_values: Float[Tensor, " nnz"]
    gate_values: Float[Tensor, " nnz"] | None = None


class SparseTrainingDecoding(NamedTuple):
    """What the decoder makes of a `SparseTrainingEncoding`.

    Attributes:
        processed_in: the encoder's (normalised, not yet centred) input, [batch, d_in].
        sae_out: reconstruction, [batch, d_in].
        gate_recons: what is decoded from the gate, without bias, [batch, d_in].
        decoder_norms: row norms of the decoder, [d_sae], when the losses need them.
    """

    processed_in: Tensor
    sae_out: Tensor
    gate_recons: Tensor | None
    decoder_norms: Tensor | None


def as_step_input(
    sae_in: Tensor | TrainStepInput | None,
    current_l1_coefficient: float | None = None,
    dead_neuron_mask: Tensor | None = None,
    step_input: TrainStepInput | None = None,
) -> TrainStepInput:
    """One `TrainStepInput` from either style of arguments."""
    if step_input is not None:
        return step_input
    if isinstance(sae_in, TrainStepInput):
        return sae_in
    if sae_in is None:
        raise TypeError("training_forward_pass needs sae_in or a TrainStepInput.")
    coefficient = 0.0 if current_l1_coefficient is None else current_l1_coefficient
    return TrainStepInput(sae_in, {"l1": coefficient}, dead_neuron_mask)
