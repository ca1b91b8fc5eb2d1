"""Where a trainer's batches come from: an activations store, or any iterator of activations.

A source also does what needs statistics of real activations, which it takes before the first batch:
overlong activations are left out, and what is left is whitened. Scaling to a mean norm of
sqrt(d_in) is a store's own work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.activations.scaling import scaled, unscaled
from sae_lens.saes.whitening import WHITENING
from sae_lens.training.counted_batches import CountedBatches
from sae_lens.whitening import DEFAULT_SHRINKAGE, CovarianceEstimate, Whitening, whiten_parts

SCALED_BY_THE_SOURCE = "expected_average_only_in"

# The median of so many batches' norms is that of the activations, for all that it is used for.
_BATCHES_FOR_MEDIAN = 100


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
        rows = self.without_overlong(self._moved(rows))
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
        inputs = self._inputs(rows).float()
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
                    {name: self._moved(tensor) for name, tensor in part.items()}
                )
                for part in parts
            )

    def _moved(self, rows: Tensor) -> Tensor:
        device = self.settings.device
        return rows if device is None else rows.to(device, non_blocking=True)

    def _next_rows(self) -> Float[Tensor, "batch d_in"]:
        """The next rows, scaled where there is a factor."""
        raise NotImplementedError

    def _inputs(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d_in"]:
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

    def _estimated_factor(self, batches: Iterable[Tensor]) -> Any:
        """sqrt(width) over the mean norm of unscaled batches, without what is left out.

        Where the SAE reads several activations, each has a factor of its own.

        Returns:
            a number, or one for each column of a row.

        Raises:
            ValueError: when there is no batch, or a mean norm is zero or not finite.
        """
        norms, width = [], 1
        for rows in islice(batches, self.settings.n_batches):
            kept = self.without_overlong(rows).float()
            width = self._width_of_factor(kept.shape[-1])
            norms.append(kept.unflatten(-1, (-1, width)).norm(dim=-1).cpu())
        means = torch.cat(norms).mean(dim=0).tolist() if norms else [0.0]
        wrong = [mean for mean in means if not math.isfinite(mean) or mean == 0.0]
        if wrong:
            raise ValueError(
                f"The mean norm of the activations over {len(norms)} batches is {wrong[0]}, so "
                "they cannot be scaled; check the source, or use normalize_activations='none'."
            )
        factors = [math.sqrt(width) / mean for mean in means]
        if self.settings.n_read == 1:
            return factors[0]
        return torch.tensor(factors).repeat_interleave(width)

    def _width_of_factor(self, width_of_row: int) -> int:
        widths = self.settings.widths
        return width_of_row if widths is None or self.settings.n_read == 1 else widths[0]

    def _take_median(self, batches: Iterable[Tensor]) -> None:
        """From unscaled batches; not that many are needed.

        Raises:
            ValueError: when there is no batch, or the median is zero or not finite.
        """
        some = islice(batches, min(self.settings.n_batches, _BATCHES_FOR_MEDIAN))
        norms = [self._inputs(rows).float().norm(dim=-1).cpu() for rows in some]
        median = torch.cat(norms).median().item() if norms else 0.0
        if not math.isfinite(median) or median == 0.0:
            raise ValueError(
                f"The median norm of the activations over {len(norms)} batches is {median}, so "
                "none can be left out for being longer; check the source, or leave norm_filter out."
            )
        self.norm_median = median

    def _take_whitening(self, batches: Iterable[Tensor]) -> None:
        """From unscaled batches, without those that are left out."""
        estimates: list[CovarianceEstimate] = []
        for rows in islice(batches, self.settings.n_batches):
            kept = self.without_overlong(self._moved(rows))
            parts = kept.split(list(self.settings.widths or [kept.shape[-1]]), dim=-1)
            estimates = estimates or [CovarianceEstimate() for _ in parts]
            for estimate, part in zip(estimates, parts, strict=True):
                estimate.add(part)
        shrinkage = self.settings.shrinkage
        estimates = estimates or [CovarianceEstimate()]
        self.whitening = tuple(estimate.whitening(shrinkage) for estimate in estimates)


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
        if self._needs_median:
            self._look_ahead(self._take_median)
        if self._needs_whitening:
            self._look_ahead(self._take_whitening)
        if self._needs_factor and self.norm_limit is not None:
            self.norm_scaling_factor = self._look_ahead(self._estimated_factor)
        self.store.set_norm_scaling_factor_if_needed()

    def sample(self) -> Float[Tensor, "n d_in"]:
        """Some of the first activations, as they are trained on; none of them is used up."""
        self.prepare()
        return self.finished(self.store.storage_buffer[:, 0, :])

    def _look_ahead(self, take: Callable[[Iterable[Tensor]], Any]) -> Any:
        if not hasattr(self.store, "look_ahead"):
            raise ValueError(
                "Whitening and norm_filter need statistics of the data, and a "
                f"{type(self.store).__name__} has no look_ahead to take them from. Pass an "
                "ActivationsStore or an iterable of batches."
            )
        with closing(self.store.look_ahead(self.settings.n_batches)) as batches:
            return take(rows[:, 0, :] for rows in batches)

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
        if self._needs_median:
            self._take_median(self._batches)
        if self._needs_whitening:
            self._take_whitening(self._batches)
        if self._needs_factor:
            self._factor = self._estimated_factor(self._batches)

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
