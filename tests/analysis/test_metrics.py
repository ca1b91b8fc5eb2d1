"""Each figure against a value worked out by hand, and its independence of batch size."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens.analysis import metrics
from sae_lens.analysis.metrics import (
    FiringAccumulator,
    MeanAccumulator,
    ReconstructionAccumulator,
    SparsityAccumulator,
    VarianceAccumulator,
    firing_fractions,
    kl_divergence,
    max_cosine_similarity,
    next_token_loss,
    position_blocks,
    recovered_score,
)

# Two tokens in two dimensions, mean (2, 0); the reconstruction halves the first and zeroes the
# second coordinate of the other.
TARGET = torch.tensor([[4.0, 3.0], [0.0, -3.0]])
RECONSTRUCTION = torch.tensor([[2.0, 1.5], [0.0, -4.5]])


def reconstruct(target, reconstruction, batch_size=None):
    accumulator = ReconstructionAccumulator()
    step = batch_size or len(target)
    for start in range(0, len(target), step):
        accumulator.update(target[start : start + step], reconstruction[start : start + step])
    return accumulator


def test_reconstruction_quality_by_hand():
    quality = reconstruct(TARGET, RECONSTRUCTION).quality()
    # errors: 4 + 2.25 = 6.25 and 2.25; deviations from (2, 0): 4 + 9 = 13 for both tokens
    assert quality["mse_per_token"] == pytest.approx((6.25 + 2.25) / 2)
    assert quality["mse"] == pytest.approx((6.25 / 2 + 2.25 / 2) / 2)
    assert quality["explained_variance"] == pytest.approx(1 - 8.5 / 26)
    assert quality["explained_variance_legacy"] == pytest.approx(
        ((1 - 6.25 / 13) + (1 - 2.25 / 13)) / 2
    )
    assert quality["cossim"] == pytest.approx(1.0)


def test_legacy_explained_variance_differs_from_the_corrected_one():
    target = torch.tensor([[10.0], [-10.0], [1.0], [-1.0]])
    reconstruction = torch.tensor([[10.0], [-10.0], [0.0], [0.0]])
    quality = reconstruct(target, reconstruction).quality()
    assert quality["explained_variance"] == pytest.approx(1 - 2 / 202)
    assert quality["explained_variance_legacy"] == pytest.approx((1 + 1 + 0 + 0) / 4)


def test_shrinkage_by_hand():
    shrinkage = reconstruct(TARGET, RECONSTRUCTION).shrinkage()
    assert shrinkage["l2_norm_in"] == pytest.approx((5 + 3) / 2)
    assert shrinkage["l2_norm_out"] == pytest.approx((2.5 + 4.5) / 2)
    assert shrinkage["l2_ratio"] == pytest.approx((0.5 + 1.5) / 2)
    # squared norms of the output 6.25 + 20.25; inner products 12.5 + 13.5
    assert shrinkage["relative_reconstruction_bias"] == pytest.approx(26.5 / 26)


def test_norm_ratio_of_a_zero_token_uses_denominator_one():
    shrinkage = reconstruct(torch.zeros(1, 3), torch.full((1, 3), 2.0)).shrinkage()
    assert shrinkage["l2_ratio"] == pytest.approx(math.sqrt(12))


@pytest.mark.parametrize(
    ("reconstruct_as", "explained", "cosine", "ratio"),
    [("zero", -1.0, 0.0, 0.0), ("perfect", 1.0, 1.0, 1.0), ("mean", 0.0, None, None)],
)
def test_zero_perfect_and_mean_reconstructions(reconstruct_as, explained, cosine, ratio):
    # the mean (1, 1) has the same squared norm as the variance per token, so zero explains −1
    target = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    reconstruction = {
        "zero": torch.zeros_like(target),
        "perfect": target,
        "mean": target.mean(0).expand_as(target),
    }[reconstruct_as]
    accumulator = reconstruct(target, reconstruction)
    quality = accumulator.quality()
    assert quality["explained_variance"] == pytest.approx(explained)
    assert quality["explained_variance_legacy"] == pytest.approx(explained)
    if cosine is not None:
        assert quality["cossim"] == pytest.approx(cosine)
        assert accumulator.shrinkage()["l2_ratio"] == pytest.approx(ratio)


def test_variance_of_a_large_mean_is_not_lost():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).double()
    accumulator = VarianceAccumulator()
    for batch in (x + 1e8).split(5):
        accumulator.update(batch)
    expected = (x - x.mean(0)).square().sum().item()
    assert accumulator.sum_of_squares == pytest.approx(expected, rel=1e-6)


def test_a_token_without_deviation_does_not_spoil_the_legacy_mean():
    target = torch.tensor([[0.0], [1.0], [-1.0]])
    quality = reconstruct(target, target + 0.5).quality()
    assert quality["explained_variance_legacy"] == pytest.approx(1 - 0.25)


def test_figures_over_no_tokens_are_nan_and_constant_targets_explain_nothing():
    empty = ReconstructionAccumulator()
    empty.update(torch.zeros(0, 3), torch.zeros(0, 3))
    assert all(math.isnan(v) for v in {**empty.quality(), **empty.shrinkage()}.values())
    assert all(math.isnan(v) for v in SparsityAccumulator().result().values())
    constant = reconstruct(torch.ones(3, 2), torch.ones(3, 2)).quality()
    assert math.isnan(constant["explained_variance"])


@pytest.mark.no_shape_checks
def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2\)"):
        ReconstructionAccumulator().update(torch.zeros(2, 2), torch.zeros(2, 3))


def test_sparsity_by_hand():
    accumulator = SparsityAccumulator()
    accumulator.update(torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]]))
    accumulator.update(torch.tensor([[0.0, 0.0, 0.0]]))
    assert accumulator.result() == {"l0": pytest.approx(1.0), "l1": pytest.approx(2.0)}


def test_signed_features_count_by_absolute_value():
    accumulator = SparsityAccumulator()
    accumulator.update(torch.tensor([[-2.0, 0.0, 1.0]]))
    assert accumulator.result() == {"l0": 2.0, "l1": 3.0}


def test_firing_statistics_by_hand():
    # feature 0 fires on two tokens of prompt 0, feature 1 once in each prompt, feature 2 never
    acts = torch.zeros(2, 3, 3)
    acts[0, 0, 0] = acts[0, 1, 0] = 1
    acts[0, 2, 1] = acts[1, 0, 1] = 5
    accumulator = FiringAccumulator()
    accumulator.update(acts)
    assert accumulator.density().tolist() == pytest.approx([2 / 6, 2 / 6, 0])
    consistency = accumulator.consistency().tolist()
    assert consistency[:2] == pytest.approx([2.0, 1.0])
    assert math.isnan(consistency[2])


def test_ignored_positions_neither_fire_nor_count():
    acts = torch.ones(1, 4, 1)
    kept = torch.tensor([[False, True, True, False]])
    accumulator = FiringAccumulator()
    accumulator.update(acts, kept)
    assert accumulator.n_tokens == 2
    assert accumulator.density().tolist() == [1.0]
    assert accumulator.consistency().tolist() == [2.0]


def test_density_over_zero_tokens_is_an_error():
    accumulator = FiringAccumulator()
    accumulator.update(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="zero tokens"):
        accumulator.density()


def test_firing_fractions_by_hand():
    fractions = firing_fractions(torch.tensor([0.0, 0.005, 0.05, 0.5]))
    assert fractions["frac_alive"] == pytest.approx(0.75)
    assert fractions["freq_over_1_percent"] == pytest.approx(0.5)
    assert fractions["freq_over_10_percent"] == pytest.approx(0.25)
    assert fractions["normalized_freq_over_1_percent"] == pytest.approx(0.55 / 0.555)
    assert fractions["normalized_freq_over_10_percent"] == pytest.approx(0.5 / 0.555)
    assert math.isnan(firing_fractions(torch.zeros(3))["normalized_freq_over_1_percent"])


def test_max_cosine_similarity_by_hand():
    rows = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, -3.0], [0.0, 0.0]])
    half = math.sqrt(0.5)
    assert max_cosine_similarity(rows).tolist() == pytest.approx([half, half, 0.0, 0.0])
    assert math.isnan(max_cosine_similarity(rows[:1]).item())


@pytest.mark.parametrize("block", [1, 7, 20, 10_000])
def test_max_cosine_similarity_does_not_depend_on_blocks(block):
    rows = torch.randn(13, 5, generator=torch.Generator().manual_seed(1))
    unit = rows / rows.norm(dim=-1, keepdim=True)
    full = unit @ unit.T
    full.fill_diagonal_(-2)
    torch.testing.assert_close(max_cosine_similarity(rows, block), full.max(dim=-1).values)


def test_max_cosine_similarity_never_holds_the_whole_matrix(monkeypatch):
    seen = []
    matmul = torch.Tensor.__matmul__

    def spy(left, right):
        out = matmul(left, right)
        seen.append(out.numel())
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    max_cosine_similarity(torch.randn(200, 3), block_elements=2000)
    assert max(seen) <= 2000
    assert len(seen) == 20


def test_kl_divergence_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    q = torch.tensor([[0.25, 0.25, 0.5]]).log()
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert kl_divergence(p, q).item() == pytest.approx(expected)
    assert kl_divergence(p + 7, p - 3).item() == pytest.approx(0, abs=1e-7)


def test_kl_divergence_with_an_impossible_token_is_finite():
    p = torch.tensor([[0.0, -torch.inf]])
    q = torch.tensor([[0.0, 0.0]])
    assert kl_divergence(p, q).item() == pytest.approx(math.log(2))


def test_next_token_loss_by_hand():
    logits = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    losses = next_token_loss(logits, torch.tensor([1, 0])).tolist()
    assert losses == pytest.approx([-math.log(0.75), math.log(2)])


def test_half_precision_logits_are_compared_in_float32():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert kl_divergence(logits, logits * 1.5).dtype == torch.float32
    assert next_token_loss(logits, torch.tensor([0, 1, 2])).dtype == torch.float32


@pytest.mark.parametrize(
    ("plain", "with_sae", "with_ablation", "score"),
    [(1.0, 1.0, 3.0, 1.0), (1.0, 3.0, 3.0, 0.0), (1.0, 1.5, 3.0, 0.75), (0.0, -1.0, 1.0, 2.0)],
)
def test_recovered_score(plain, with_sae, with_ablation, score):
    assert recovered_score(plain, with_sae, with_ablation) == pytest.approx(score)


def test_recovered_score_without_damage_is_nan():
    assert math.isnan(recovered_score(1.0, 1.0, 1.0))


def test_position_blocks_cover_every_position_once():
    blocks = list(position_blocks(10, vocabulary=300, block_elements=1000))
    assert [(b.start, b.stop) for b in blocks] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert len(list(position_blocks(5, vocabulary=10**9, block_elements=10))) == 5


def weights(**parameters):
    return SimpleNamespace(**{k: torch.tensor(v) for k, v in parameters.items()})


def test_weight_metrics_by_hand():
    sae = weights(W_enc=[[3.0, 0.0], [4.0, 2.0]], W_dec=[[3.0, 4.0], [1.0, 0.0]], b_enc=[0.5, -1.0])
    result = metrics.featurewise_weight_metrics(sae)
    assert result["encoder_bias"] == [0.5, -1.0]
    assert result["encoder_norm"] == pytest.approx([5.0, 2.0])
    assert result["encoder_decoder_cosine_sim"] == pytest.approx([1.0, 0.0])


def test_weight_metrics_of_gated_matching_pursuit_and_transcoder():
    gated = weights(W_enc=[[1.0]], W_dec=[[1.0]], b_gate=[0.25])
    assert metrics.featurewise_weight_metrics(gated)["encoder_bias"] == [0.25]
    pursuit = weights(W_dec=[[3.0, 4.0]])
    result = metrics.featurewise_weight_metrics(pursuit)
    assert result["encoder_norm"] == pytest.approx([5.0])
    assert result["encoder_bias"] == [0.0]
    transcoder = weights(W_enc=[[1.0], [1.0]], W_dec=[[1.0, 2.0, 3.0]], b_enc=[0.0])
    assert "encoder_decoder_cosine_sim" not in metrics.featurewise_weight_metrics(transcoder)
    assert set(metrics.direction_similarity(pursuit)) == {"max_decoder_cosine_sim"}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_prompts=st.integers(1, 9),
    first=st.integers(1, 9),
    second=st.integers(1, 9),
)
def test_figures_do_not_depend_on_batch_size(seed, n_prompts, first, second):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_prompts, 5, 4, generator=generator) * 3 + 2
    y = x + torch.randn(n_prompts, 5, 4, generator=generator)
    acts = torch.randn(n_prompts, 5, 6, generator=generator).relu()
    kept = torch.rand(n_prompts, 5, generator=generator) > 0.3

    def evaluate(batch_size):
        recons, sparsity, firing = (
            ReconstructionAccumulator(),
            SparsityAccumulator(),
            FiringAccumulator(),
        )
        for b in torch.arange(n_prompts).split(batch_size):
            recons.update(x[b][kept[b]], y[b][kept[b]])
            sparsity.update(acts[b][kept[b]])
            firing.update(acts[b], kept[b])
        figures = {**recons.quality(), **recons.shrinkage(), **sparsity.result()}
        # these two are defined by the batch; all others must agree
        figures.pop("mse")
        figures.pop("explained_variance_legacy")
        if firing.n_tokens:
            figures |= {f"density{i}": v for i, v in enumerate(firing.density().tolist())}
            figures |= {f"consistency{i}": v for i, v in enumerate(firing.consistency().tolist())}
        return figures

    a, b = evaluate(first), evaluate(second)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-9, abs=1e-12, nan_ok=True), name


def test_mean_accumulator_counts_elements():
    mean = MeanAccumulator()
    assert math.isnan(mean.mean)
    mean.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    mean.update(torch.tensor([10.0]))
    assert mean.mean == pytest.approx(4.0)
