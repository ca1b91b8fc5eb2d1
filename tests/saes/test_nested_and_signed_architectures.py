"""Formulas of Matryoshka BatchTopK, AbsTopK and matching pursuit, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_lens.late_numbers import LateNumber
from sae_lens.saes import (
    SAE,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
    BatchTopKTrainingSAEConfig,
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TrainingSAE,
    TrainStepInput,
)
from tests.helpers import D_IN, D_SAE, activations, assert_close, randomize

WIDTHS = [8, 20, D_SAE]
DEAD = torch.arange(D_SAE) % 3 == 0


def matryoshka(**fields) -> MatryoshkaBatchTopKTrainingSAE:
    torch.manual_seed(0)
    fields = {"k": 5, "matryoshka_widths": WIDTHS, "dtype": "float64", **fields}
    cfg = MatryoshkaBatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **fields)
    sae = MatryoshkaBatchTopKTrainingSAE(cfg)
    randomize(sae)
    return sae


def losses_of(sae: TrainingSAE, x: Tensor, dead: Tensor | None = None) -> dict[str, Tensor]:
    return sae.training_forward_pass(TrainStepInput(x, {}, dead)).losses


@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
@pytest.mark.parametrize("rescale", [False, True])
def test_every_prefix_reconstructs(rescale: bool, normalization: str):
    sae = matryoshka(
        rescale_acts_by_decoder_norm=rescale, normalize_activations=normalization
    ).eval()
    x = activations(10, dtype=torch.float64)
    losses = losses_of(sae, x)
    assert list(losses) == [
        "mse_loss",
        "inner_mse_loss_8",
        "inner_mse_loss_20",
        "auxiliary_reconstruction_loss",
    ]
    features = sae.encode(x)
    for width in WIDTHS[:-1]:
        alone = features.clone()
        alone[:, width:] = 0
        want = (sae.decode(alone) - x).pow(2).sum(-1).mean()
        assert_close(losses[f"inner_mse_loss_{width}"], want)


def test_gradients_of_a_prefix_stay_in_it():
    sae = matryoshka()
    losses_of(sae, activations(10, dtype=torch.float64))["inner_mse_loss_20"].backward()
    assert sae.W_dec.grad[:20].any()
    assert not sae.W_dec.grad[20:].any()
    assert not sae.W_enc.grad[:, 20:].any()


def test_the_aux_loss_of_levels_by_formula():
    sae = matryoshka(use_matryoshka_aux_loss=True, aux_loss_coefficient=0.5)
    x = activations(10, dtype=torch.float64)
    norms = sae.W_dec.norm(dim=-1)
    features = sae.encode_for_training(x).feature_acts
    hidden = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    k0, want = D_IN // 2, 0.0
    for start, end in [(0, 8), (8, 20), (20, D_SAE)]:
        residual = x - ((features / norms)[:, :end] @ sae.W_dec[:end] + sae.b_dec)
        dead = torch.arange(D_SAE)[DEAD & (torch.arange(D_SAE) >= start)]
        dead = dead[dead < end]
        top = hidden[:, dead].topk(min(k0, len(dead)), dim=-1)
        acts = torch.zeros_like(hidden).scatter(-1, dead[top.indices], top.values)
        error = ((acts / norms) @ sae.W_dec - residual).pow(2).sum(-1).mean()
        want = want + 0.5 * min(len(dead) / k0, 1.0) * error
    got = losses_of(sae, x, DEAD)["auxiliary_reconstruction_loss"]
    assert_close(got, want)
    got.backward()
    assert not sae.W_enc.grad[:, ~DEAD].any()
    assert sae.W_enc.grad[:, DEAD].any(dim=0).all() or DEAD.sum() > k0
    plain = losses_of(matryoshka(aux_loss_coefficient=0.5), x, DEAD)
    assert plain["auxiliary_reconstruction_loss"] != got


@pytest.mark.parametrize("widths", [[8, 8, 48], [20, 8], [0, 48], [-3, 48], [8, 49]])
def test_widths_that_make_no_sense_are_refused(widths: list[int]):
    with pytest.raises(ValueError, match="must increase and lie between 1 and"):
        matryoshka(matryoshka_widths=widths)


@pytest.mark.parametrize("widths", [[], [8]])
def test_the_last_width_is_added_with_a_warning(widths: list[int], tmp_path: Path):
    with pytest.warns(UserWarning, match="48 is added"):
        sae = matryoshka(matryoshka_widths=widths)
    assert sae.cfg.matryoshka_widths == [*widths, D_SAE]
    assert widths == widths[:1]
    sae.save_model(tmp_path)
    assert TrainingSAE.load_from_disk(tmp_path).cfg.matryoshka_widths == [*widths, D_SAE]


def test_a_training_file_of_matryoshka_loads_for_inference_as_jumprelu(tmp_path: Path):
    sae = matryoshka(dtype="float32").eval()
    sae.topk_threshold.fill_(0.4)
    sae.save_model(tmp_path)
    assert SAE.load_from_disk(tmp_path).cfg.architecture == "jumprelu"


def test_abstopk_selects_by_absolute_value_and_keeps_signs():
    torch.manual_seed(0)
    sae = AbsTopKTrainingSAE(AbsTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5))
    randomize(sae)
    x = activations(10)
    norms = sae.W_dec.norm(dim=-1)
    hidden = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    output = sae.training_forward_pass(TrainStepInput(x, {}, DEAD))
    kept = hidden.abs().topk(5, dim=-1).indices
    assert_close(
        output.feature_acts, torch.zeros_like(hidden).scatter(-1, kept, hidden.gather(-1, kept))
    )
    assert (output.feature_acts < 0).any()
    k0 = D_IN // 2
    among = hidden.abs().masked_fill(~DEAD, -1).topk(k0, dim=-1).indices
    acts = torch.zeros_like(hidden).scatter(-1, among, hidden.gather(-1, among))
    want = ((acts / norms) @ sae.W_dec - (x - output.sae_out)).pow(2).sum(-1).mean()
    assert_close(output.losses["auxiliary_reconstruction_loss"], want)


@pytest.mark.parametrize("max_iterations", [3, None])
def test_matching_pursuit_gives_the_same_bits_where_the_host_asks_later(
    max_iterations: int | None, monkeypatch: pytest.MonkeyPatch
):
    cfg = MatchingPursuitTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, decoder_init_norm=1.0, max_iterations=max_iterations
    )
    sae = MatchingPursuitTrainingSAE(cfg)
    x = activations(10)
    results = []
    for looks in (True, False):
        monkeypatch.setattr(
            "sae_lens.saes.matching_pursuit.may_look_at", lambda _, looks=looks: looks
        )
        sae.zero_grad()
        output = sae.training_forward_pass(TrainStepInput(x, {}))
        output.loss.backward()
        gradients = [p.grad.clone() for p in sae.parameters() if p.grad is not None]
        results.append([output.feature_acts.detach(), output.loss.detach(), *gradients])
    assert len(results[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_matching_pursuit_takes_one_iteration_more_where_the_host_asks_later(
    monkeypatch: pytest.MonkeyPatch,
):
    sae = MatchingPursuitTrainingSAE(MatchingPursuitTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    asked: list[bool] = []

    class Watched(LateNumber):
        def value(self) -> float:
            asked.append(bool(super().value()))
            return asked[-1]

    monkeypatch.setattr("sae_lens.saes.matching_pursuit.LateNumber", Watched)
    monkeypatch.setattr("sae_lens.saes.matching_pursuit.may_look_at", lambda _: False)
    x = torch.zeros(4, D_IN) + sae.b_dec.detach()
    assert not sae.encode(x).any()
    assert asked == [False]


def test_matching_pursuit_trains_its_decoder():
    torch.manual_seed(0)
    cfg = MatchingPursuitTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, max_iterations=4, decoder_init_norm=1.0
    )
    assert (cfg.residual_threshold, cfg.stop_on_duplicate_support) == (0.01, True)
    sae = MatchingPursuitTrainingSAE(cfg)
    assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    x, history = activations(64), []
    for _ in range(30):
        output = sae.training_forward_pass(TrainStepInput(x, {}))
        assert list(output.losses) == ["mse_loss"]
        assert ((output.feature_acts != 0).sum(-1) <= 4).all()
        output.loss.backward()
        optimizer.step()
        sae.recycle_gradients()
        optimizer.zero_grad()
        history.append(output.loss.item())
    assert history[-1] < 0.8 * history[0]
    assert sae.get_coefficients() == {}


def test_the_pursuit_counts_gradients_through_values():
    torch.manual_seed(0)
    cfg = MatchingPursuitTrainingSAEConfig(
        d_in=4, d_sae=6, max_iterations=2, dtype="float64", decoder_init_norm=1.0
    )
    sae = MatchingPursuitTrainingSAE(cfg)
    x = activations(3, 4, dtype=torch.float64)

    def loss(W_dec: Tensor) -> Tensor:
        with torch.no_grad():
            sae.W_dec.copy_(W_dec)
        return sae.training_forward_pass(TrainStepInput(x, {})).loss

    start = sae.W_dec.detach().clone()
    loss(start).backward()
    direction = torch.randn(6, 4, dtype=torch.float64)
    eps = 1e-6
    numeric = (loss(start + eps * direction) - loss(start - eps * direction)).item() / (2 * eps)
    assert (sae.W_dec.grad * direction).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_names_at_their_newer_paths():
    from sae_lens.saes import abstopk_sae, matching_pursuit_sae, matryoshka_batchtopk_sae

    assert matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE is MatryoshkaBatchTopKTrainingSAE
    assert matching_pursuit_sae.MatchingPursuitTrainingSAE is MatchingPursuitTrainingSAE
    assert abstopk_sae.AbsTopKTrainingSAE is AbsTopKTrainingSAE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_sae_that_was_cast_trains_on(dtype: torch.dtype) -> None:
    sae = TrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4)).to(dtype=dtype)
    for mode in ("dense", "sparse"):
        sae.sparse_kernels = mode  # type: ignore[assignment]
        before = float(sae.topk_threshold)
        sae.training_forward_pass(TrainStepInput(activations(dtype=dtype)))
        assert float(sae.topk_threshold) > before


def test_following_the_threshold_makes_no_dense_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_lens.kernels.dispatch._SMALLEST_WORK", 1)
    monkeypatch.setattr("sae_lens.kernels.dispatch._SPARSE_BELOW", 1.0)
    sae = TrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
    output = sae.training_forward_pass(TrainStepInput(activations()))
    assert output.metrics["sparse_kernels"] == 1.0
    assert "feature_acts" not in vars(output)
