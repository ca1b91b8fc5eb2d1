"""Initial values and exact folds of SAE weights: pure functions over tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

_WITHOUT_VALUES: ContextVar[bool] = ContextVar("sae_weights_without_values", default=False)

# Rows of norm zero belong to features that do nothing; dividing them by this keeps them so.
_SMALLEST_NORM = 1e-30

# Passes over a decoder that need a temporary go piece by piece; 1 MiB of float32 stays in cache.
_ELEMENTS_PER_PIECE = 1 << 18


@contextmanager
def weights_without_values() -> Iterator[None]:
    """Inside, new SAEs get parameters of the right shape but no memory (torch's meta device).

    Loading uses it: the parameters are then assigned from the file, so that the weights are held
    once, not twice.
    """
    token = _WITHOUT_VALUES.set(True)
    try:
        yield
    finally:
        _WITHOUT_VALUES.reset(token)


def are_without_values() -> bool:
    """Whether weights are being made without values at the moment."""
    return _WITHOUT_VALUES.get()


def _place(device: torch.device) -> torch.device:
    return torch.device("meta") if are_without_values() else device


def constant_parameter(
    *shape: int, value: float, dtype: torch.dtype, device: torch.device
) -> nn.Parameter:
    """A parameter filled with one value."""
    return nn.Parameter(torch.full(shape, value, dtype=dtype, device=_place(device)))


def kaiming_parameter(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> nn.Parameter:
    """A matrix with entries uniform in +-sqrt(6/columns) (He et al. 2015, torch's defaults)."""
    weight = torch.empty(rows, columns, dtype=dtype, device=_place(device))
    return nn.Parameter(nn.init.kaiming_uniform_(weight))


def row_norms(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """L2 norm of every decoder row."""
    return W_dec.norm(dim=-1)


def unit_rows_(W_dec: Float[Tensor, "d_sae d_in"], norm: float = 1.0) -> None:
    """Give every row the L2 norm `norm`, in place. Rows of zeros stay zeros."""
    W_dec.mul_(norm / row_norms(W_dec).clamp(min=_SMALLEST_NORM).unsqueeze(-1))


def decoder_norms_for_folding(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """Row norms to fold out of the decoder; 1 where a row is zero, which leaves it alone."""
    return divisors(row_norms(W_dec))


def divisors(norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Norms to divide by; 1 where a norm is zero."""
    return torch.where(norms > 0, norms, torch.ones_like(norms))


def fold_decoder_norms_(
    norms: Float[Tensor, " d_sae"],
    W_enc: Float[Tensor, "d_in d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    *per_feature: Float[Tensor, " d_sae"],
) -> None:
    """Move row norms from the decoder to the encoder, its biases and thresholds, in place.

    Features are multiplied by `norms` and reconstructions stay the same.
    """
    W_dec.div_(norms.unsqueeze(-1))
    W_enc.mul_(norms)
    for vector in per_feature:
        vector.mul_(norms.to(vector.dtype))


def fold_activation_scale_(
    scale: float,
    W_enc: Float[Tensor, "d_in d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
) -> None:
    """Make weights trained on `scale * x` work on x: `sae(x) == old_sae(scale * x) / scale`."""
    W_enc.mul_(scale)
    W_dec.div_(scale)
    b_dec.div_(scale)


def remove_parallel_component_(
    gradient: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> None:
    """Subtract from each row of `gradient` its projection on the (unit) row of W_dec, in place.

    Bricken et al. 2023, "Towards Monosemanticity", appendix "Advice for Training Sparse
    Autoencoders": otherwise the optimiser works against the renormalisation of the rows.
    """
    n_rows = max(1, _ELEMENTS_PER_PIECE // max(W_dec.shape[1], 1))
    for piece, rows in zip(gradient.split(n_rows), W_dec.split(n_rows), strict=True):
        parallel = (piece * rows).sum(dim=-1, keepdim=True)
        piece.addcmul_(parallel, rows, value=-1.0)
