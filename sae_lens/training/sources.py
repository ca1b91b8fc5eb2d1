"""Where a trainer's batches come from: an activations store, or any iterator of activations.

A source also does what needs statistics of real activations, which it takes before the first batch:
overlong activations are left out, and what is left is whitened. Scaling to a mean norm of
sqrt(d_in) is a store's own work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.activations.scaling import scaled, unscaled
from sae_lens.saes.whitening import WHITENING
from sae_lens.training.counted_batches import CountedBatches
from sae_lens.training.source_statistics import Covariances, MeanNorms, MedianNorm, Statistic
from sae_lens.whitening import DEFAULT_SHRINKAGE, Whitening, whiten_parts

SCALED_BY_THE_SOURCE = "expected_average_only_in"


@dataclass(frozen=True)
class SourceSettings:
    """What a source does to activations.

    Attributes:
        normalize_activations: "whitening" and "expected_average_only_in" are for the source; all
            else is up to the SAE.
        norm_multiple: activations longer than this many times the median norm are left out.
        shrinkage: of the covariance.
        n_batches: batches from which statistics are taken, at most.
        widths: those of the activations that lie side by side in a row; None for one activation.
        n_read: how many of them, from the first, are the SAE's input.
        device: where the SAE is, and where whitening is done; None for where activations are.
    """

    normalize_activations: str = "none"
    norm_multiple: float | None = None
    shrinkage: float = DEFAULT_SHRINKAGE
    n_batches: int = 1000
    widths: Sequence[int] | None = None
    n_read: int = 1
    device: torch.device | str | None = None


class ActivationSource:
    """What the trainer asks for its batches.

    Attributes:
        settings: what is done to activations.
        norm_median: median norm of raw input activations, once it is known; None without a filter.
        whitening: a map for each activation in a row; None without whitening.
        is_alone: whether the place in the data is this source's own. Otherwise several trainers
            share it, and whoever has it saves it with the state of all.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self.norm_median: float | None = None
        self.whitening: tuple[Whitening, ...] | None = None
        self._given_back: Tensor | None = None
        self._in_hand: Tensor | None = None  # drawn, but not finished yet
        self.is_alone = True

    @property
    def norm_scaling_factor(self) -> Any:
        """The factor that every batch has been multiplied by, None for none.

        A number, or one for each column of a row.
        """
        raise NotImplementedError

    @norm_scaling_factor.setter
    def norm_scaling_factor(self, value: Any) -> None:
        raise NotImplementedError

    def prepare(self) -> None:
        """Take the statistics that are needed and not known yet, before the first batch."""
        raise NotImplementedError

    def next_batch(self) -> Float[Tensor, "batch d_in"]:
        """The next training batch. Raises `StopIteration` when there is none."""
        batch, self._given_back = self._given_back, None
        if batch is not None:
            return batch
        while True:
            if self._in_hand is None:
                self._in_hand = self._next_rows()
            batch = self.finished(self._in_hand)
            self._in_hand = None
            if len(batch):  # one of overlong activations alone has nothing to learn from
                return batch

    def put_back(self, batch: Float[Tensor, "batch d_in"]) -> None:
        """Take back a batch that was not trained on; it comes next again."""
        self._given_back = batch

    def drop_what_was_put_back(self) -> None:
        """Let that batch be; what comes next is the one after it."""
        self._given_back = None

    def finished(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "kept d_in"]:
        """Rows as they are trained on: without overlong ones, and whitened."""
        if self.norm_limit is None and self.whitening is None:
            return rows
        rows = self.without_overlong(self.moved(rows))
        return rows if self.whitening is None else whiten_parts(self.whitening, rows)

    @property
    def norm_limit(self) -> float | None:
        """The longest raw activation that is trained on; None for any length."""
        if self.norm_median is None or self.settings.norm_multiple is None:
            return None
        return self.norm_median * self.settings.norm_multiple

    def without_overlong(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "kept d_in"]:
        """Rows whose input activation is no longer than the limit; rows may be scaled."""
        if self.norm_limit is None:
            return rows
        inputs = self.inputs_of(rows).float()
        if self.norm_scaling_factor is not None:
            inputs = unscaled_inputs(inputs, self.norm_scaling_factor)
        return rows[inputs.norm(dim=-1) <= self.norm_limit]

    def require_resumable(self) -> None:
        """Nothing if a new source of the same kind can be brought to where this one stands.

        Raises:
            ValueError: otherwise, with what to pass instead.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The statistics, and the batch that was put back."""
        whitening = self.whitening
        return {
            "given_back": self._given_back,
            "in_hand": self._in_hand,
            "norm_scaling_factor": self.norm_scaling_factor,
            "norm_median": self.norm_median,
            "whitening": None if whitening is None else [part.state_dict() for part in whitening],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self.norm_scaling_factor = state["norm_scaling_factor"]
        self.norm_median = state.get("norm_median")
        self._given_back, self._in_hand = state.get("given_back"), state.get("in_hand")
        parts = state.get("whitening")
        if parts is None:
            self.whitening = None
        else:
            self.whitening = tuple(
                Whitening.from_state_dict(
                    {name: self.moved(tensor) for name, tensor in part.items()}
                )
                for part in parts
            )

    def moved(self, rows: Tensor) -> Tensor:
        """Rows on the SAE's device."""
        device = self.settings.device
        return rows if device is None else rows.to(device, non_blocking=True)

    def _next_rows(self) -> Float[Tensor, "batch d_in"]:
        """The next rows, scaled where there is a factor."""
        raise NotImplementedError

    def inputs_of(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d_in"]:
        """The part of rows that the SAE reads."""
        widths = self.settings.widths
        return rows if widths is None else rows[:, : sum(widths[: self.settings.n_read])]

    @property
    def _needs_median(self) -> bool:
        return self.settings.norm_multiple is not None and self.norm_median is None

    @property
    def _needs_whitening(self) -> bool:
        return self.settings.normalize_activations == WHITENING and self.whitening is None

    @property
    def _needs_factor(self) -> bool:
        scales = self.settings.normalize_activations == SCALED_BY_THE_SOURCE
        return scales and self.norm_scaling_factor is None

    @property
    def _estimates_factor(self) -> bool:
        """Whether the factor, if one is needed, is estimated here."""
        return True

    def statistics(self) -> Iterator[Statistic]:
        """Those that are needed and not known yet: to be taken one after the other."""
        if self._needs_median:
            yield MedianNorm(self)
        if self._needs_whitening:
            yield Covariances(self)
        if self._needs_factor and self._estimates_factor:
            yield MeanNorms(self)


class StoreSource(ActivationSource):
    """Batches of an `ActivationsStore`, which estimates and applies the scaling factor itself.

    Args:
        store: an `ActivationsStore`, or anything with its `next_batch`, its scaling factor and,
            where statistics are needed, its `look_ahead`.
        settings: what is done to activations; nothing when None.
    """

    def __init__(self, store: Any, settings: SourceSettings | None = None) -> None:
        super().__init__(settings or SourceSettings())
        self.store = store

    @property
    def norm_scaling_factor(self) -> Any:
        """The store's factor."""
        return self.store.estimated_norm_scaling_factor

    @norm_scaling_factor.setter
    def norm_scaling_factor(self, value: Any) -> None:
        pause_prefetching(self.store)
        self.store.estimated_norm_scaling_factor = value

    def require_resumable(self) -> None:
        """Nothing if the store can be saved to a file and loaded from it, or is shared."""
        if self.is_alone and not (hasattr(self.store, "save") and hasattr(self.store, "load")):
            raise ValueError(
                f"The place in the data of a {type(self.store).__name__} is not in its "
                "checkpoints, so no training can go on from them: it has next_batch, but not save "
                "and load. Pass an ActivationsStore, give it these methods, or pass an iterable."
            )

    @torch.no_grad()
    def prepare(self) -> None:
        """Let the store estimate its factor, and look ahead for the other statistics."""
        for statistic in self.statistics():
            self._require_look_ahead()
            with closing(self.store.look_ahead(statistic.n_batches)) as batches:
                statistic.add_some(rows[:, 0, :] for rows in batches)
            statistic.finish()  # afterwards: while looking ahead, the store has no factor
        self.store.set_norm_scaling_factor_if_needed()

    def sample(self) -> Float[Tensor, "n d_in"]:
        """Some of the first activations, as they are trained on; none of them is used up."""
        self.prepare()
        return self.finished(self.store.storage_buffer[:, 0, :])

    @property
    def _estimates_factor(self) -> bool:
        return self.norm_limit is not None  # the store knows nothing of what is left out

    def _require_look_ahead(self) -> None:
        if not hasattr(self.store, "look_ahead"):
            raise ValueError(
                "Whitening and norm_filter need statistics of the data, and a "
                f"{type(self.store).__name__} has no look_ahead to take them from. Pass an "
                "ActivationsStore or an iterable of batches."
            )

    def _next_rows(self) -> Float[Tensor, "batch d_in"]:
        return self.store.next_batch()[:, 0, :]


class IteratorSource(ActivationSource):
    """Batches of any iterable of `[batch, d_in]` (or `[batch, 1, d_in]`) tensors.

    The batches from which statistics are taken are not trained on.

    Args:
        batches: the iterable, or a function that gives it: see `CountedBatches`.
        settings: what is done to activations; scaling is this source's own work.
    """

    def __init__(self, batches: Any, settings: SourceSettings | None = None) -> None:
        super().__init__(settings or SourceSettings())
        self._counted = CountedBatches(batches)
        self._batches: Iterator[Tensor] = map(_without_middle, self._counted)
        self._factor: Any = None

    def require_resumable(self) -> None:
        """Nothing: batches that come in an order of their own can be counted."""

    def state_dict(self) -> dict[str, Any]:
        """The statistics, the batch that was put back, and the place among the batches."""
        return {**super().state_dict(), "batches": self._counted.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state_dict`; see `CountedBatches`.

        Raises:
            ValueError: when the provider gives other batches than then.
        """
        super().load_state_dict(state)
        self._counted.load_state_dict(state["batches"])

    @property
    def norm_scaling_factor(self) -> Any:
        """The factor that batches are multiplied by."""
        return self._factor

    @norm_scaling_factor.setter
    def norm_scaling_factor(self, value: Any) -> None:
        self._factor = value

    @torch.no_grad()
    def prepare(self) -> None:
        """Take the statistics from the first batches.

        Raises:
            ValueError: when there is no batch, or the statistics are zero or not finite.
        """
        for statistic in self.statistics():
            statistic.add_some(self._batches)
            statistic.finish()

    def _next_rows(self) -> Float[Tensor, "batch d_in"]:
        batch = next(self._batches)
        return batch if self._factor is None else scaled(batch, self._factor)


def unscaled_inputs(
    inputs: Float[Tensor, "n d_in"], factor: float | Tensor
) -> Float[Tensor, "n d_in"]:
    """Scaled activations as they were; a factor may be one for each column of a row."""
    if isinstance(factor, Tensor) and factor.ndim:
        factor = factor[: inputs.shape[-1]].to(inputs)
    return inputs / factor


def _without_middle(batch: Tensor) -> Tensor:
    return batch[:, 0, :] if batch.ndim == 3 and batch.shape[1] == 1 else batch


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
    def scaling_factor(self) -> Any:
        """The factor, or one for each column of a row; None for none."""
        return self._source.norm_scaling_factor

    def scale(self, acts: Tensor) -> Tensor:
        """Raw activations as the SAE is trained on them."""
        return acts if self.scaling_factor is None else scaled(acts, self.scaling_factor)

    def unscale(self, acts: Tensor) -> Tensor:
        """The opposite of `scale`."""
        return acts if self.scaling_factor is None else unscaled(acts, self.scaling_factor)

    __call__ = scale
