"""Toy models of superposition: their data, their losses, and SAEs trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens.config import ToyModelSAERunnerConfig
from sae_lens.saes import SAE, SAEConfig
from sae_lens.toy_model_runner import toy_model_sae_runner
from sae_lens.training.toy_models import (
    ReluOutputModel,
    ReluOutputModelCE,
    ToyConfig,
    _init_importance,
    constant_lr,
    cosine_decay_lr,
    linear_lr,
    parse_colors_for_superposition_plot,
    plot_features_in_2d,
)
from sae_lens.training.train_toy_sae import train_toy_sae
from tests.helpers import make_sae, make_training_sae

N = 20_000


def test_learning_rate_scales() -> None:
    assert [linear_lr(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert constant_lr(3, 4) == 1.0
    assert cosine_decay_lr(0, 5) == 1.0
    assert cosine_decay_lr(2, 5) == pytest.approx(0.5**0.5)
    assert cosine_decay_lr(4, 5) == pytest.approx(0.0)


def test_a_value_per_feature() -> None:
    assert _init_importance(None, 3, "cpu").tolist() == [1, 1, 1]
    assert _init_importance(0.5, 3, "cpu").tolist() == [0.5] * 3
    assert _init_importance(torch.tensor([1.0, 2.0]), 2, "cpu").tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"the shape \(3,\), but this has \(2,\)"):
        _init_importance(torch.ones(2), 3, "cpu")


def test_features_are_as_frequent_as_asked_and_paired_as_asked() -> None:
    p = torch.tensor([0.3, 0.3, 0.2, 0.2, 0.1])
    model = ReluOutputModel(ToyConfig(5, 2, 1, 1, feature_probability=p))
    batch = model.generate_batch(N)
    present = batch > 0
    assert batch.shape == (N, 5)
    torch.testing.assert_close(present.float().mean(0), p, atol=0.015, rtol=0)
    assert torch.equal(present[:, 0], present[:, 1])
    assert not (present[:, 2] & present[:, 3]).any()
    assert batch.max() <= 1
    torch.testing.assert_close(batch[present].mean(), torch.tensor(0.5), atol=0.01, rtol=0)
    # the two of a correlated pair have magnitudes of their own
    assert torch.corrcoef(batch[present[:, 0]][:, :2].T)[0, 1].abs() < 0.05


def test_output_and_loss_by_hand() -> None:
    model = ReluOutputModel(ToyConfig(2, 1, importance=torch.tensor([1.0, 2.0])))
    with torch.no_grad():
        model.W.copy_(torch.tensor([[1.0, -2.0]]))
        model.b_final.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([[1.0, 0.25]])  # hidden 0.5, read back [0.5, -1]
    assert model(x).tolist() == [[1.0, 0.0]]
    assert model(x, return_type="loss").item() == pytest.approx(2 * 0.25**2 / 2)
    assert model.run_with_cache(x)[1]["hook_hidden"].tolist() == [[0.5]]
    with pytest.raises(ValueError, match="return_type is 'both'"):
        model(x, return_type="both")


def test_the_strongest_feature_as_a_class() -> None:
    model = ReluOutputModelCE(ToyConfig(4, 2, feature_probability=0.05))
    batch = model.generate_batch(500)
    assert ((batch > 0).sum(1) >= 1).all()
    out = torch.zeros(500, 4)
    assert model.calculate_loss(out, batch).item() == pytest.approx(torch.log(torch.tensor(4.0)))
    out[torch.arange(500), batch.argmax(1)] = 50
    assert model.calculate_loss(out, batch).item() == pytest.approx(0, abs=1e-6)


def test_training_stores_features_in_the_hidden_layer() -> None:
    model = ReluOutputModel(ToyConfig(5, 2, feature_probability=0.05))
    data = model.generate_batch(2000)
    before = model.calculate_loss(model(data), data).item()
    model.optimize(batch_size=256, steps=400, lr=1e-2, lr_scale=linear_lr)
    assert model.calculate_loss(model(data), data).item() < 0.5 * before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_correlated_pairs": 2, "n_anticorrelated_pairs": 1}, "are 6 features, but n_features"),
        ({"feature_probability": 1.5}, "between 0 and 1"),
        ({"feature_probability": 0.7, "n_anticorrelated_pairs": 1}, "at most 0.5"),
        (
            {"feature_probability": torch.tensor([0.1, 0.2, 0, 0, 0]), "n_correlated_pairs": 1},
            "the same probability",
        ),
    ],
)
def test_impossible_features_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReluOutputModel(ToyConfig(**fields))


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_the_runner_trains_an_sae(architecture: str) -> None:
    cfg = ToyModelSAERunnerConfig(
        architecture=architecture,  # type: ignore[arg-type]
        n_features=4, n_hidden=4, d_sae=8, feature_probability=0.1, model_training_steps=50,
        total_training_tokens=20_000, train_batch_size=200, lr=1e-2, log_to_wandb=False,
        device="cpu", b_dec_init_method="mean",
    )  # fmt: skip
    sae = toy_model_sae_runner(cfg)
    again = toy_model_sae_runner(cfg)
    assert torch.equal(sae.W_dec, again.W_dec), "the seed decides"
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(8))
    assert sae.cfg.architecture == architecture
    assert sae.b_dec.abs().sum() > 0


def test_an_sae_learns_what_it_is_shown() -> None:
    directions = torch.nn.functional.normalize(torch.randn(6, 16), dim=1)
    active = (torch.rand(30_000, 6) < 0.15) * torch.rand(30_000, 6)
    data = active @ directions
    sae = make_training_sae(
        d_sae=12, l1_coefficient=2e-3, normalize_sae_decoder=True, apply_b_dec_to_input=False
    )
    before = ((sae(data) - data) ** 2).mean().item()
    trained = train_toy_sae(sae, data, batch_size=200, lr=1e-2)
    assert trained is sae
    assert ((sae(data) - data) ** 2).mean().item() < 0.1 * before
    with pytest.raises(ValueError, match="needs a TrainingSAE"):
        train_toy_sae(make_sae(), data)


def test_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    logged: list[tuple[int, dict[str, Any]]] = []
    monkeypatch.setattr(wandb, "log", lambda metrics, step: logged.append((step, metrics)))
    train_toy_sae(
        make_training_sae(), torch.randn(640, 16), batch_size=64, feature_sampling_window=4,
        use_wandb=True, wandb_log_frequency=5,
    )  # fmt: skip
    assert [step for step, metrics in logged if "losses/mse_loss" in metrics] == [4, 9]
    assert [step for step, metrics in logged if "sparsity/dead_features" in metrics] == [4, 8]


def test_config_of_the_sae() -> None:
    cfg = ToyModelSAERunnerConfig(n_hidden=3, d_sae=7, device="cpu", dtype=torch.float64)
    sae = SAE(SAEConfig.from_dict(cfg.get_base_sae_cfg_dict()))
    assert (sae.W_dec.shape, sae.dtype) == ((7, 3), torch.float64)
    assert sae.cfg.model_name == "ToyModel"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "topk"}, "toy models take standard or gated"),
        ({"b_dec_init_method": "median"}, "b_dec_init_method is 'median'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"total_training_tokens": 10}, "less than one batch"),
    ],
)
def test_bad_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToyModelSAERunnerConfig(**fields)


def test_colors() -> None:
    parse = parse_colors_for_superposition_plot
    assert parse(None, 2) == ["black", "black"]
    assert parse(["red", "blue"], 2) == ["red", "blue"]
    paired = parse((1, 1), 5)
    assert paired[0] == paired[1] != paired[2] == paired[3] != paired[4] == "black"
    assert len(parse(torch.tensor([0.0, 1.0]), 2)) == 2
    for colors in ([], ["red"]):
        with pytest.raises(ValueError, match="colors for 2 features"):
            parse(colors, 2)
    with pytest.raises(ValueError, match="4 features in pairs"):
        parse((1, 1), 3)


def test_plotting(tmp_path: Path) -> None:
    figure = plot_features_in_2d(
        torch.randn(3, 2, 5), title="Features", subplot_titles=["a", "b", "c"],
        save=str(tmp_path / "plot.png"),
    )  # fmt: skip
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    assert all(len(axes.lines) == 5 for axes in figure.axes)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert len(plot_features_in_2d(torch.randn(2, 4)).axes) == 1
    with pytest.raises(ValueError, match=r"\(3, 4\); expected \[timesteps, 2, features\]"):
        plot_features_in_2d(torch.randn(3, 4))
    with pytest.raises(ValueError, match="2 subplot_titles for 1 pictures"):
        plot_features_in_2d(torch.randn(2, 4), subplot_titles=["a", "b"])
