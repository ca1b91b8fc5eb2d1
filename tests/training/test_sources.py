from __future__ import annotations

import math

import pytest
import torch

from sae_lens.training.sources import ActivationScaler, IteratorSource, SourceSettings

SCALED = "expected_average_only_in"


def test_batches_of_an_iterator_are_scaled_to_a_mean_norm_of_sqrt_d() -> None:
    batches = [torch.randn(8, 1, 4) * 5 for _ in range(10)]
    source = IteratorSource(iter(batches), SourceSettings(SCALED, n_batches=6))
    source.prepare()
    mean_norm = torch.cat(batches[:6]).norm(dim=-1).mean().item()
    assert source.norm_scaling_factor == pytest.approx(math.sqrt(4) / mean_norm)
    batch = source.next_batch()
    assert batch.shape == (8, 4)
    torch.testing.assert_close(batch, batches[6][:, 0] * source.norm_scaling_factor)
    scaler = ActivationScaler(source)
    torch.testing.assert_close(scaler.unscale(scaler.scale(batch)), batch)


def test_nothing_is_drawn_or_scaled_without_need() -> None:
    batches = [torch.randn(8, 4)]
    source = IteratorSource(batches, SourceSettings(n_batches=6))
    source.prepare()
    assert source.next_batch() is batches[0]
    assert ActivationScaler(source).scale(batches[0]) is batches[0]
    with pytest.raises(StopIteration):
        source.next_batch()


@pytest.mark.parametrize("batches", [[], [torch.zeros(3, 4)]])
def test_what_cannot_be_scaled_is_refused(batches: list[torch.Tensor]) -> None:
    source = IteratorSource(batches, SourceSettings(SCALED, n_batches=6))
    with pytest.raises(ValueError, match="mean norm"):
        source.prepare()
