"""Where a trainer's batches come from: an activations store, or any iterator of activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

SCALED_BY_THE_SOURCE = "expected_average_only_in"


class ActivationSource(Protocol):
    """What the trainer asks for its batches."""

    @property
    def norm_scaling_factor(self) -> float | None:
        """The factor that every batch has been multiplied by, None for none."""
        ...

    @norm_scaling_factor.setter
    def norm_scaling_factor(self, value: float | None) -> None: ...

    def prepare(self) -> None:
        """Find out the scaling factor, if one is used, before the first batch."""
        ...

    def next_batch(self) -> Float[Tensor, "batch d_in"]:
        """The next training batch. Raises `StopIteration` when there is none."""
        ...


class StoreSource:
    """Batches of an `ActivationsStore`, which estimates and applies the scaling factor itself."""

    def __init__(self, store: Any) -> None:
        self.store = store

    @property
    def norm_scaling_factor(self) -> float | None:
        """The store's factor."""
        return self.store.estimated_norm_scaling_factor

    @norm_scaling_factor.setter
    def norm_scaling_factor(self, value: float | None) -> None:
        pause_prefetching(self.store)
        self.store.estimated_norm_scaling_factor = value

    def prepare(self) -> None:
        """Let the store estimate its factor, if it has none yet and needs one."""
        self.store.set_norm_scaling_factor_if_needed()

    def next_batch(self) -> Float[Tensor, "batch d_in"]:
        """The store's next batch without its middle dimension."""
        return self.store.next_batch()[:, 0, :]


class IteratorSource:
    """Batches of any iterable of `[batch, d_in]` (or `[batch, 1, d_in]`) tensors.

    Args:
        batches: the iterable.
        scales: whether batches are scaled to a mean norm of sqrt(d_in). The batches from which the
            factor is estimated are not trained on.
        n_batches_for_norm_estimate: how many these are.
    """

    def __init__(
        self, batches: Iterable[Tensor], scales: bool, n_batches_for_norm_estimate: int
    ) -> None:
        self._batches: Iterator[Tensor] = iter(batches)
        self._scales = scales
        self._n_batches_for_norm_estimate = n_batches_for_norm_estimate
        self.norm_scaling_factor: float | None = None

    @torch.no_grad()
    def prepare(self) -> None:
        """Estimate the factor: sqrt(d_in) over the mean norm of the first batches.

        Raises:
            ValueError: when there is no batch, or the mean norm is zero or not finite.
        """
        if not self._scales or self.norm_scaling_factor is not None:
            return
        norms, d_in = [], 0
        for batch in itertools.islice(self._batches, self._n_batches_for_norm_estimate):
            norms.append(batch.float().norm(dim=-1).mean())
            d_in = batch.shape[-1]
        mean_norm = torch.stack(norms).mean().item() if norms else 0.0
        if not math.isfinite(mean_norm) or mean_norm == 0.0:
            raise ValueError(
                f"The mean norm of the activations over {len(norms)} batches is {mean_norm}, so "
                "they cannot be scaled; check the source, or use normalize_activations='none'."
            )
        self.norm_scaling_factor = math.sqrt(d_in) / mean_norm

    def next_batch(self) -> Float[Tensor, "batch d_in"]:
        """The next batch, scaled where a factor is used."""
        batch = next(self._batches)
        if batch.ndim == 3 and batch.shape[1] == 1:
            batch = batch[:, 0, :]
        return batch if self.norm_scaling_factor is None else batch * self.norm_scaling_factor


def pause_prefetching(data: Any) -> None:
    """Bring a source that makes batches ahead to rest, before its model or state is touched."""
    pause = getattr(data, "pause_prefetching", None)
    if pause is not None:
        pause()


class ActivationScaler:
    """The factor of a source, as evaluators of the 6.x kind expect it."""

    def __init__(self, source: ActivationSource) -> None:
        self._source = source

    @property
    def scaling_factor(self) -> float | None:
        """The factor, None for none."""
        return self._source.norm_scaling_factor

    def scale(self, acts: Tensor) -> Tensor:
        """Raw activations as the SAE is trained on them."""
        return acts if self.scaling_factor is None else acts * self.scaling_factor

    def unscale(self, acts: Tensor) -> Tensor:
        """The opposite of `scale`."""
        return acts if self.scaling_factor is None else acts / self.scaling_factor

    __call__ = scale
