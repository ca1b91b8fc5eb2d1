"""An exponential moving average of the weights, which is what a run saves and returns.

The average goes into every checkpoint's `sae_weights.safetensors` and into the trained SAE. The
weights that the optimiser moves are what training goes on from; a checkpoint keeps them in its
resumption state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class WeightAverage:
    """The trained SAE is an exponential moving average of the weights.

    Attributes:
        decay: share of the past.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"weight_average.decay is {self.decay}; it must lie in [0, 1).")


class WeightAverager:
    """The averages of one run.

    Args:
        settings: the decay; None averages nothing.

    Attributes:
        averages: by the parameters' names; empty before the first update.
    """

    def __init__(self, settings: WeightAverage | None) -> None:
        self.settings = settings
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, sae: torch.nn.Module) -> None:
        """Take in the weights after a step of the optimiser."""
        if self.settings is None:
            return
        for name, value in sae.named_parameters():
            if name not in self.averages:
                self.averages[name] = value.detach().clone()
            self.averages[name].lerp_(value.detach(), 1 - self.settings.decay)

    @torch.no_grad()
    def copy_into(self, sae: torch.nn.Module) -> None:
        """Give `sae` the averages, if there are any."""
        for name, value in sae.named_parameters():
            if name in self.averages:
                value.copy_(self.averages[name])

    def in_place_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` by name, with the averages of those that have one."""
        return {name: self.averages.get(name, value) for name, value in tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """The averages; tensors are not copied."""
        return {"averages": dict(self.averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.averages = {name: value.clone() for name, value in state["averages"].items()}
