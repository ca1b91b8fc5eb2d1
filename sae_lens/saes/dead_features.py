"""Which features are dead, for the terms of a loss that are about them.

On the CPU they are listed, and a term is computed over them alone. Elsewhere the host would have to
wait for the device to learn how many there are. Where it knows that there are at most n
(`TrainStepInput.most_dead`), it takes n features among which all the dead ones are, and the others
contribute nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens.saes.training_step import TrainStepInput


class DeadFeatures(NamedTuple):
    """The dead features, possibly with some others.

    Attributes:
        indices: features in ascending order, [n].
        are_dead: which of these are dead, [n]; None when all of them are.
        count: how many are dead; a scalar tensor where the host does not know.
    """

    indices: Int[Tensor, " n"]
    are_dead: Bool[Tensor, " n"] | None
    count: int | Tensor

    def only(
        self, values: Float[Tensor, "batch n"], otherwise: float = 0.0
    ) -> Float[Tensor, "batch n"]:
        """The values of dead features, with `otherwise` (and no gradient) in place of others."""
        if self.are_dead is None:
            return values
        return values.masked_fill(~self.are_dead, otherwise)

    def if_any(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss; 0 when nothing is dead."""
        if isinstance(self.count, int):
            return loss
        return torch.where(self.count > 0, loss, torch.zeros_like(loss))

    def share_of(self, n: int) -> float | Tensor:
        """How many are dead, over n; 1 at most."""
        if isinstance(self.count, int):
            return min(self.count / n, 1.0)
        return (self.count / n).clamp(max=1.0)


def dead_features(
    dead_neuron_mask: Bool[Tensor, " d_sae"] | None, most_dead: int | None = None
) -> DeadFeatures | None:
    """The dead features of a mask; None when the host knows that there are none.

    Args:
        dead_neuron_mask: which features are dead.
        most_dead: how many there are at most; None asks the device, unless that is the CPU.
    """
    if dead_neuron_mask is None or most_dead == 0:
        return None
    if may_look_at(dead_neuron_mask) or most_dead is None:
        indices = dead_neuron_mask.nonzero().squeeze(1)
        return DeadFeatures(indices, None, len(indices)) if len(indices) else None
    # few different numbers of features, so that compiled and cached shapes serve for long
    n = min(1 << (most_dead - 1).bit_length(), len(dead_neuron_mask))
    indices = dead_neuron_mask.to(torch.uint8).topk(n, sorted=False).indices.sort().values
    return DeadFeatures(indices, dead_neuron_mask[indices], dead_neuron_mask.sum())


def dead_features_of(step: TrainStepInput) -> DeadFeatures | None:
    """The dead features of a training step."""
    return dead_features(step.dead_neuron_mask, step.most_dead)


def may_look_at(tensor: Tensor) -> bool:
    """Whether the host may read the tensor without waiting for a device."""
    return tensor.device.type == "cpu"
