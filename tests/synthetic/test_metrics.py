"""Metrics of recovery on SAEs whose quality is known."""

from __future__ import annotations

import pytest
import torch

from sae_lens.saes import SAE, StandardSAEConfig
from sae_lens.synthetic import SyntheticConfig, SyntheticData, recovery_of
from sae_lens.synthetic.data import SyntheticSample
from sae_lens.synthetic.metrics import match_directions


def orthogonal_truth(n: int = 8) -> tuple[torch.Tensor, SyntheticSample]:
    directions = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))[0]
    fires = torch.rand(500, n, generator=torch.Generator().manual_seed(1)) < 0.3
    return directions, SyntheticSample(fires.float() @ directions, fires.float())


def sae_with(directions: torch.Tensor) -> SAE:
    sae = SAE(StandardSAEConfig(d_in=directions.shape[1], d_sae=len(directions)))
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_enc.fill_(-1e-3)
        sae.b_dec.zero_()
    return sae.eval()


def test_a_perfect_sae():
    directions, sample = orthogonal_truth()
    shuffled = directions[torch.randperm(8)]
    found = recovery_of(sae_with(3 * shuffled / 3), directions, sample)
    assert found.mcc == pytest.approx(1.0, abs=1e-5)
    assert found.uniqueness == found.precision == found.recall == 1.0
    assert found.dead == 0.0
    assert found.l0 == pytest.approx(float(sample.features.sum(-1).mean()))
    assert found.explained_variance > 0.99


def test_doubled_dead_and_missing_features_are_seen():
    directions, sample = orthogonal_truth()
    rows = directions.clone()
    rows[1] = rows[0]  # found twice, and one true feature not at all
    sae = sae_with(rows)
    with torch.no_grad():
        sae.b_enc[2] = -100
    found = recovery_of(sae, directions, sample)
    assert found.dead == pytest.approx(1 / 8)
    assert found.uniqueness == pytest.approx(6 / 7)
    assert found.mcc == pytest.approx(7 / 8, abs=1e-4)
    assert found.recall == pytest.approx(6 / 8, abs=1e-5)


def test_no_latent_is_matched_twice():
    cosines = torch.tensor([[0.9, 0.8], [0.95, 0.1], [-0.5, 0.2]])
    assert match_directions(cosines).tolist() == [1, 0, -1]


def test_random_directions_are_poor():
    data = SyntheticData(SyntheticConfig())
    sample = data.sample(200, torch.Generator().manual_seed(0))
    random = torch.nn.functional.normalize(
        torch.randn(128, 64, generator=torch.Generator().manual_seed(77)), dim=-1
    )
    assert recovery_of(sae_with(random), data.directions, sample).mcc < 0.6
