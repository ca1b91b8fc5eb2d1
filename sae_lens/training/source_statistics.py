"""What a source has to know of the data before the first batch, from batches as they come.

A statistic takes batch after batch and tells its source in the end. So several sources of the same
data can take theirs from one look ahead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.whitening import CovarianceEstimate

# The median of so many batches' norms is that of the activations, for all that it is used for.
_BATCHES_FOR_MEDIAN = 100


class Statistic:
    """Something that a source needs to know.

    Args:
        source: an `ActivationSource`.

    Attributes:
        n_batches: from how many batches it is taken, at most.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.n_batches: int = source.settings.n_batches

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Take unscaled rows into account."""
        raise NotImplementedError

    def finish(self) -> None:
        """Tell the source. Raises `ValueError` when the rows do not allow it."""
        raise NotImplementedError

    def add_some(self, batches: Iterable[Float[Tensor, "n d"]]) -> None:
        """Add batches, as many as are needed."""
        for rows in islice(batches, self.n_batches):
            self.add(rows)


class _Norms(Statistic):
    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._norms: list[Tensor] = []

    def _refuse(self, what: str, value: float, instead: str) -> None:
        if math.isfinite(value) and value != 0.0:
            return
        raise ValueError(
            f"The {what} norm of the activations over {len(self._norms)} batches is {value}, so "
            f"{instead}."
        )


class MedianNorm(_Norms):
    """The median norm of input activations, by which overlong ones are known."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.n_batches = min(self.n_batches, _BATCHES_FOR_MEDIAN)

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Take unscaled rows into account."""
        self._norms.append(self.source.inputs_of(rows).float().norm(dim=-1).cpu())

    def finish(self) -> None:
        """Tell the source. Raises `ValueError` when the median is zero or not finite."""
        median = torch.cat(self._norms).median().item() if self._norms else 0.0
        instead = (
            "none can be left out for being longer; check the source, or leave norm_filter out"
        )
        self._refuse("median", median, instead)
        self.source.norm_median = median


class MeanNorms(_Norms):
    """The mean norm of what is left in, as sqrt(width) over it.

    Where the SAE reads several activations, each has a factor of its own.
    """

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._width = 1

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Take unscaled rows into account."""
        kept = self.source.without_overlong(rows).float()
        widths = self.source.settings.widths or kept.shape[-1:]
        self._width = kept.shape[-1] if self.source.settings.n_read == 1 else widths[0]
        self._norms.append(kept.unflatten(-1, (-1, self._width)).norm(dim=-1).cpu())

    def finish(self) -> None:
        """Tell the source. Raises `ValueError` when a mean is zero or not finite."""
        means = torch.cat(self._norms).mean(dim=0).tolist() if self._norms else [0.0]
        instead = "they cannot be scaled; check the source, or use normalize_activations='none'"
        for mean in means:
            self._refuse("mean", mean, instead)
        factors = [math.sqrt(self._width) / mean for mean in means]
        one = self.source.settings.n_read == 1
        self.source.norm_scaling_factor = (
            factors[0] if one else torch.tensor(factors).repeat_interleave(self._width)
        )


class Covariances(Statistic):
    """Mean and covariance of each activation in a row, of what is left in."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._estimates: list[CovarianceEstimate] = []

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Take unscaled rows into account."""
        kept = self.source.without_overlong(self.source.moved(rows))
        parts = kept.split(list(self.source.settings.widths or [kept.shape[-1]]), dim=-1)
        self._estimates = self._estimates or [CovarianceEstimate() for _ in parts]
        for estimate, part in zip(self._estimates, parts, strict=True):
            estimate.add(part)

    def finish(self) -> None:
        """Tell the source. Raises `ValueError` when the rows do not vary or are not finite."""
        estimates = self._estimates or [CovarianceEstimate()]
        shrinkage = self.source.settings.shrinkage
        self.source.whitening = tuple(estimate.whitening(shrinkage) for estimate in estimates)


@torch.no_grad()
def prepare_together(sources: Sequence[Any], shared: Any) -> None:
    """Prepare sources whose stores are views of a shared one, with as few looks ahead as possible.

    Args:
        sources: `StoreSource`s; each store has `own_rows`, which takes its part of shared rows.
        shared: the store that they share.
    """
    needed = [source.statistics() for source in sources]
    while taken := [one for one in (next(each, None) for each in needed) if one is not None]:
        with closing(shared.look_ahead(max(one.n_batches for one in taken))) as batches:
            for number, rows in enumerate(batches):
                for one in taken:
                    if number < one.n_batches:
                        one.add(one.source.store.own_rows(rows)[:, 0, :])
        for one in taken:
            one.finish()
    for source in sources:
        source.prepare()
