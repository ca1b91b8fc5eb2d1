"""Whitening: activations brought to mean 0 and equal variance in every direction, and back.

    z = (x - mean) C^(-1/2),   x = z C^(1/2) + mean

C is the covariance, shrunk towards a multiple of the identity: `(1 - a) C + a (tr C / d) I`, with
a = 0.01 unless asked otherwise (Ledoit & Wolf 2004, "A well-conditioned estimator for
large-dimensional covariance matrices", in its simplest form). The shrinkage bounds how much
directions of hardly any variance are magnified: by `1 / sqrt(a)` relative to the mean at most. Of
all square roots the symmetric one is taken, which changes activations least (ZCA; Kessy, Lewin &
Strimmer 2018, "Optimal Whitening and Decorrelation", arXiv:1512.00809, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

DEFAULT_SHRINKAGE = 0.01

# Without shrinkage, directions of less variance than this share of the mean count as having that.
_SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class Whitening:
    """An invertible map of activations, `(x - mean) @ matrix`.

    Attributes:
        mean: what is subtracted.
        matrix: what centred activations are multiplied with.
        inverse: its inverse.
    """

    mean: Float[Tensor, " d"]
    matrix: Float[Tensor, "d d"]
    inverse: Float[Tensor, "d d"]

    def apply(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Whitened activations, in float32."""
        return (x.float() - self.mean) @ self.matrix

    def undo(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The activations that were whitened."""
        return z.float() @ self.inverse + self.mean

    def inverted(self) -> Whitening:
        """The map from whitened activations to the original ones."""
        return Whitening(-self.mean @ self.matrix, self.inverse, self.matrix)

    def to(self, device: torch.device) -> Whitening:
        """The same map on a device."""
        if self.mean.device == device:
            return self
        return Whitening(*(part.to(device) for part in (self.mean, self.matrix, self.inverse)))

    def state_dict(self) -> dict[str, Tensor]:
        """The three tensors by name."""
        return {"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Whitening:
        """Counterpart of `state_dict`."""
        return cls(state["mean"], state["matrix"], state["inverse"])


class CovarianceEstimate:
    """Mean and covariance of rows that come in batches.

    Rows are taken relative to the first batch's mean, so that nothing is lost to a large mean, and
    sums are kept in float64.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._origin: Tensor | None = None
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, rows: Float[Tensor, "n d"]) -> None:
        """Take `rows` into account."""
        if not len(rows):
            return
        rows = rows.float()
        if self._origin is None:
            self._origin = rows.mean(dim=0)
            self._sum = torch.zeros_like(self._origin, dtype=torch.float64)
            self._products = torch.zeros(
                rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device
            )
        assert self._sum is not None and self._products is not None
        centred = rows - self._origin
        self._sum += centred.sum(dim=0)
        self._products += centred.T @ centred
        self.n_rows += len(rows)

    def whitening(self, shrinkage: float = DEFAULT_SHRINKAGE) -> Whitening:
        """The whitening of these rows.

        Args:
            shrinkage: weight of the identity, from 0 to 1; with 1, activations are only centred and
                scaled.

        Raises:
            ValueError: with fewer than two rows, or when they do not vary or are not finite.
        """
        if self.n_rows < 2 or self._origin is None:
            raise ValueError(
                f"Whitening needs activations to learn from; there were {self.n_rows}. Give more "
                "data, or use normalize_activations='none'."
            )
        assert self._sum is not None and self._products is not None
        offset = self._sum / self.n_rows
        covariance = self._products / self.n_rows - torch.outer(offset, offset)
        mean_variance = covariance.diagonal().mean()
        if not bool(mean_variance.isfinite()) or mean_variance <= 0:
            raise ValueError(
                f"The mean variance of {self.n_rows} activations is {float(mean_variance)}, so "
                "they cannot be whitened. Check the model's outputs at this hook, or use "
                "normalize_activations='none'."
            )
        # exactly symmetric, or rounding would turn up as an asymmetric map
        covariance = (covariance + covariance.T) / 2
        variances, directions = torch.linalg.eigh(covariance)
        variances = (1 - shrinkage) * variances.clamp(min=0) + shrinkage * mean_variance
        deviations = variances.clamp(min=_SMALLEST_SHARE * float(mean_variance)).sqrt()
        return Whitening(
            mean=(self._origin.double() + offset).float(),
            matrix=((directions / deviations) @ directions.T).float(),
            inverse=((directions * deviations) @ directions.T).float(),
        )


def whiten_parts(
    parts: Sequence[Whitening], rows: Float[Tensor, "... d"]
) -> Float[Tensor, "... d"]:
    """Rows of several activations side by side, each whitened by its own map; dtype is kept."""
    whitened = [part.to(rows.device).apply(piece) for part, piece in _split(parts, rows)]
    return torch.cat(whitened, dim=-1).to(rows.dtype)


def undo_parts(parts: Sequence[Whitening], rows: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Counterpart of `whiten_parts`, in float32."""
    return torch.cat([part.undo(piece) for part, piece in _split(parts, rows)], dim=-1)


def undo_directions(
    parts: Sequence[Whitening], rows: Float[Tensor, "... d"]
) -> Float[Tensor, "... d"]:
    """Differences of whitened rows as differences of raw ones, in float32."""
    return torch.cat([piece.float() @ part.inverse for part, piece in _split(parts, rows)], dim=-1)


def _split(parts: Sequence[Whitening], rows: Tensor) -> Iterator[tuple[Whitening, Tensor]]:
    return zip(parts, rows.split([len(part.mean) for part in parts], dim=-1), strict=True)


__all__ = [
    "DEFAULT_SHRINKAGE",
    "CovarianceEstimate",
    "Whitening",
    "undo_directions",
    "undo_parts",
    "whiten_parts",
]
