"""Run-time normalisation of activations: a value goes in with its statistics and comes back.

    x, stats = normalize(kind, x)
    y = denormalize(kind, y, stats)

The statistics are an ordinary value (no state, no closure), so whoever encodes decides how long
they live.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

NORMALIZATION_KINDS = (
    "none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "whitening",
)  # fmt: skip

_EPSILON = 1e-5


class NormStats(NamedTuple):
    """What undoing a normalisation needs: `y * scale + shift`."""

    scale: Float[Tensor, "... 1"]
    shift: Float[Tensor, "... 1"] | None = None


def needs_stats(kind: str | None) -> bool:
    """Whether decoding must undo something. Other values, None included, leave x as it is."""
    return kind in ("constant_norm_rescale", "layer_norm")


def normalize(
    kind: str | None, x: Float[Tensor, "... d_in"]
) -> tuple[Float[Tensor, "... d_in"], NormStats | None]:
    """Normalise each token over its last dimension.

    - `constant_norm_rescale`: to L2 norm sqrt(d_in).
    - `layer_norm`: to mean 0 and (unbiased) standard deviation 1.

    A token of norm zero stays finite.
    """
    if kind == "constant_norm_rescale":
        size = x.shape[-1] ** 0.5
        # so large that its inverse is finite
        norm = x.norm(dim=-1, keepdim=True).clamp(min=size * torch.finfo(x.dtype).tiny)
        return x * (size / norm), NormStats(scale=norm / size)
    if kind == "layer_norm":
        mean = x.mean(dim=-1, keepdim=True)
        centred = x - mean
        std = centred.std(dim=-1, keepdim=True)
        return centred / (std + _EPSILON), NormStats(scale=std, shift=mean)
    return x, None


def denormalize(
    kind: str | None, y: Float[Tensor, "... d_in"], stats: NormStats | None
) -> Float[Tensor, "... d_in"]:
    """Undo `normalize` on a reconstruction, with the statistics that it returned.

    Raises:
        ValueError: when `kind` needs statistics and there are none, or when they belong to
            another batch.
    """
    if not needs_stats(kind):
        return y
    if stats is None:
        raise ValueError(
            f"decode() has no statistics to undo normalize_activations={kind!r} with: call encode "
            "(or forward) on the activations first, so that their norms are known."
        )
    if stats.scale.shape[:-1] != y.shape[:-1] and stats.scale.numel() != 1:
        raise ValueError(
            f"decode() was given features of shape {tuple(y.shape[:-1])} but the last encode() saw "
            f"activations of shape {tuple(stats.scale.shape[:-1])}; under normalize_activations="
            f"{kind!r} decode only what was encoded last."
        )
    y = y * stats.scale
    return y if stats.shift is None else y + stats.shift
