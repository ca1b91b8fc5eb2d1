"""Run-time normalisation as a pure function and its inverse."""

from __future__ import annotations

import pytest
import torch

from sae_lens.saes.normalization import NORMALIZATION_KINDS, denormalize, normalize
from tests.helpers import activations, assert_close

RUN_TIME_KINDS = ("constant_norm_rescale", "layer_norm")


def test_norms_by_hand():
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    rescaled, _ = normalize("constant_norm_rescale", x)
    assert_close(rescaled, x * 2 / 5)
    layer_normed, _ = normalize("layer_norm", x)
    centred = x - 1.75
    assert_close(layer_normed, centred / ((centred**2).sum() / 3).sqrt())


@pytest.mark.parametrize("kind", [*NORMALIZATION_KINDS, None, "of another age"])
def test_the_inverse_gives_back_what_came_in(kind: str | None):
    x = activations() * 5 + 2
    y, stats = normalize(kind, x)
    assert_close(denormalize(kind, y, stats), x, atol=1e-4)
    assert (stats is not None) == (kind in RUN_TIME_KINDS)
    assert torch.equal(y, x) == (kind not in RUN_TIME_KINDS)


@pytest.mark.parametrize("kind", RUN_TIME_KINDS)
@pytest.mark.parametrize("d_in", [3, 16, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_token_of_norm_zero_stays_finite(kind: str, d_in: int, dtype: torch.dtype):
    x = torch.zeros(2, d_in, dtype=dtype)
    y, stats = normalize(kind, x)
    assert torch.equal(y, x)
    assert torch.isfinite(denormalize(kind, torch.ones_like(y), stats)).all()


@pytest.mark.parametrize("kind", RUN_TIME_KINDS)
def test_statistics_of_another_batch_are_refused(kind: str):
    _, stats = normalize(kind, activations(6))
    with pytest.raises(ValueError, match="decode only what was encoded last"):
        denormalize(kind, activations(5), stats)
    with pytest.raises(ValueError, match="call encode"):
        denormalize(kind, activations(5), None)
