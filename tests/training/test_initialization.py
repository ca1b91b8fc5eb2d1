"""First weights by rule and by trying out; in runs, and the same through lm_saes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sae_lens.lm_saes import Initializer, InitializerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes import TrainingSAE, TrainStepInput
from sae_lens.training.initialization import (
    InitialWeights,
    center_pre_activations,
    decoder_from_mlp,
    decoder_into_active_subspace,
    draw_weights,
    fit_weights,
    mlp_output_weights,
)
from tests.helpers import D_IN, D_SAE, activations, assert_close, randomize, tiny_model
from tests.runs import assert_same_weights, make_runner, run_config, train

FIELDS: dict[str, dict[str, Any]] = {
    "standard": {},
    "gated": {},
    "jumprelu": {},
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [16, D_SAE]},
    "transcoder": {"hook_name": "blocks.0.a", "hook_name_out": "blocks.0.b"},
    "batchtopk_skip_transcoder": {"k": 4, "d_out": D_IN},
}
with_each_architecture = pytest.mark.parametrize("architecture", FIELDS)


def make(architecture: str, **fields: Any) -> TrainingSAE:
    sae_class, config_class = get_sae_training_class(architecture)
    torch.manual_seed(0)
    values = {"d_in": D_IN, "d_sae": D_SAE, **FIELDS.get(architecture, {}), **fields}
    return sae_class(config_class(**values))


def batch_of(sae: TrainingSAE, n: int = 40) -> torch.Tensor:
    return activations(n, D_IN + (getattr(sae.cfg, "d_out", None) or 0)) + 0.5


@with_each_architecture
def test_uniform_bounds_and_the_transpose(architecture: str):
    sae = make(architecture)
    draw_weights(sae, InitialWeights(decoder_bound=0.5, encoder_bound=0.1))
    assert 0.45 < sae.W_dec.abs().max() <= 0.5
    assert 0.09 < sae.W_enc.abs().max() <= 0.1
    draw_weights(sae, InitialWeights(encoder_as_decoder_transpose=2.0))
    assert torch.equal(sae.W_enc, 2 * sae.W_dec.T)


@with_each_architecture
@pytest.mark.parametrize("normalization", ["none", "constant_norm_rescale"])
def test_mean_pre_activations_become_zero(architecture: str, normalization: str):
    if normalization != "none" and "transcoder" in architecture:
        normalization = "expected_average_only_in"
    sae = make(architecture, normalize_activations=normalization)
    randomize(sae)
    batch = batch_of(sae)
    center_pre_activations(sae, batch)
    first = {name: value.clone() for name, value in sae.state_dict().items()}
    sae.eval()
    output = sae.training_forward_pass(TrainStepInput(batch, dict.fromkeys(("l1",), 0.0)))
    assert_close(output.hidden_pre.mean(dim=0), torch.zeros(D_SAE), atol=1e-4)
    if architecture == "gated":
        gate = sae.process_sae_in(batch) @ sae.W_enc + sae.b_gate
        assert_close(gate.mean(dim=0), torch.zeros(D_SAE), atol=1e-4)
    center_pre_activations(sae, batch)
    for name, value in first.items():
        if name != "topk_threshold":  # the pass above moved it
            assert_close(sae.state_dict()[name], value, atol=1e-4)


@with_each_architecture
@pytest.mark.parametrize("factor", [None, 1.0])
def test_the_searched_norm_reconstructs_best(architecture: str, factor: float | None):
    sae = make(architecture)
    rules = InitialWeights(
        decoder_bound=1.0, search_decoder_norm=True, encoder_as_decoder_transpose=factor
    )
    batch = batch_of(sae, 24)
    draw_weights(sae, rules)
    buffers = {name: value.clone() for name, value in sae.named_buffers()}
    best = fit_weights(sae, rules, batch)
    assert best is not None and 0.01 <= best <= 5.1
    assert_close(sae.W_dec.norm(dim=-1), torch.full((D_SAE,), best))
    assert dict(sae.named_buffers()) == buffers
    sae.eval()

    @torch.no_grad()
    def error(norm: float) -> float:
        sae.W_dec.mul_(norm / sae.W_dec.norm(dim=-1, keepdim=True))
        if factor is not None:
            sae.W_enc.copy_(sae.W_dec.T)
        return float(sae.training_forward_pass(batch).losses["mse_loss"])

    at_best = error(best)
    assert at_best <= error(best + 0.3) + 1e-6
    assert at_best <= error(max(best - 0.3, 0.02)) + 1e-6


def test_norms_are_tried_on_a_coarse_grid_and_then_on_a_fine_one(monkeypatch: Any):
    from sae_lens.training import initialization

    tried: list[float] = []
    real = initialization.unit_rows_
    monkeypatch.setattr(
        initialization, "unit_rows_", lambda W, norm: tried.append(norm) or real(W, norm)
    )
    sae = make("standard")
    best = fit_weights(sae, InitialWeights(search_decoder_norm=True), batch_of(sae, 8))
    assert_close(torch.tensor(tried[:50]), torch.linspace(0.1, 5.0, 50))
    assert len(tried) == 71
    coarse = min(tried[:50], key=lambda norm: abs(norm - (tried[50] + 0.09)))
    assert_close(torch.tensor(tried[50:70]), torch.linspace(coarse - 0.09, coarse + 0.1, 20))
    assert tried[70] == best in tried[50:70]


@pytest.mark.parametrize("architecture", ["standard", "topk", "transcoder"])
def test_decoder_rows_in_the_active_subspace(architecture: str):
    sae = make(architecture)
    basis = torch.linalg.qr(activations(D_IN, 3))[0]
    target = activations(40, 3, seed=1) @ basis.T + 5
    batch = torch.cat([activations(40), target], dim=1) if architecture == "transcoder" else target
    decoder_into_active_subspace(sae, batch, 3)
    assert_close(sae.W_dec @ basis @ basis.T, sae.W_dec.detach(), atol=1e-4)
    assert torch.linalg.matrix_rank(sae.W_dec) == 3
    with pytest.raises(ValueError, match="17 dimensions; the 40 activations span at most 16"):
        decoder_into_active_subspace(sae, batch, 17)


def test_a_transcoders_decoder_from_an_mlp_of_either_library():
    sae, model = make("transcoder"), tiny_model()
    decoder_from_mlp(sae, model, 1)
    W_out = model.blocks[1].mlp.W_out
    rows = torch.arange(D_SAE) % len(W_out)
    assert torch.equal(sae.W_dec, W_out[rows])

    class Conv1D(nn.Linear):  # as transformers' class of that name: [in, out]
        pass

    for name, module in {
        "c_proj": Conv1D(D_IN, 64),
        "down_proj": nn.Linear(64, D_IN),
        "dense_4h_to_h": nn.Linear(64, D_IN),
        "fc_out": nn.Linear(64, D_IN),
    }.items():
        hf = nn.Module()
        layers = [nn.Module(), nn.Module()]
        for layer in layers:
            layer.mlp = nn.Module()
            setattr(layer.mlp, name, module if layer is layers[1] else nn.Linear(64, D_IN))
        hf.h = nn.ModuleList(layers)
        weight = module.weight if name == "c_proj" else module.weight.T
        assert torch.equal(mlp_output_weights(hf, 1), weight)
    for other, layer in ((model, 2), (nn.Module(), 0)):
        with pytest.raises(ValueError, match=f"no MLP with output weights in layer {layer}"):
            mlp_output_weights(other, layer)
    with pytest.raises(ValueError, match="is for transcoders"):
        decoder_from_mlp(make("standard"), tiny_model(), 0)
    with pytest.raises(ValueError, match="needs the model"):
        decoder_from_mlp(sae, None, 0)
    with pytest.raises(ValueError, match="writes 16 dimensions, the transcoder 12"):
        decoder_from_mlp(make("transcoder", d_out=12), tiny_model(), 0)


@pytest.mark.parametrize(
    ("architecture", "rules", "message"),
    [
        ("matching_pursuit", {"encoder_as_decoder_transpose": 1.0}, "SAEs have none of their own"),
        ("matching_pursuit", {"center_pre_activations": True}, "SAEs have none of their own"),
        ("standard", {"threshold": 0.1}, "'standard' has no thresholds"),
        ("standard", {"active_subspace": 2}, "needs a batch"),
    ],
)
def test_rules_that_do_not_go_with_the_sae(architecture: str, rules: Any, message: str):
    with pytest.raises(ValueError, match=message):
        draw_weights(make(architecture), InitialWeights(**rules))
    if architecture == "standard":
        narrow = make("transcoder", d_out=12)
        with pytest.raises(ValueError, match="cannot be the transpose"):
            draw_weights(narrow, InitialWeights(encoder_as_decoder_transpose=1.0))


@pytest.mark.filterwarnings("ignore:All samples in the training dataset")
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_a_run_starts_from_the_weights_that_its_rules_give(architecture: str, tmp_path: Path):
    rules = InitialWeights(
        decoder_bound=1.0,
        active_subspace=6,
        search_decoder_norm=True,
        encoder_as_decoder_transpose=0.5,
        center_pre_activations=True,
        threshold=0.25 if architecture == "jumprelu" else None,
    )
    cfg = run_config(
        tmp_path,
        architecture,
        features={"initial_weights": rules.__dict__},
        normalize_sae_decoder=False,
        normalize_activations="expected_average_only_in",
        b_dec_init_method="mean",
    )
    runner = make_runner(cfg)
    sae = runner.sae
    sample = runner.source.sample()
    assert_close(sae.W_enc, 0.5 * sae.W_dec.T)
    norms = sae.W_dec.norm(dim=-1)
    assert_close(norms, norms[:1].expand(len(norms)))
    assert torch.linalg.matrix_rank(sae.W_dec) == 6
    assert_close(sae.b_dec, sample.mean(dim=0), atol=1e-5)
    hidden = sae.process_sae_in(sample[: cfg.train_batch_size_tokens]) @ sae.W_enc
    bias = sae.b_gate if architecture == "gated" else sae.b_enc
    assert_close((hidden + bias).mean(dim=0), torch.zeros(len(norms)), atol=1e-4)
    if architecture == "jumprelu":
        assert_close(sae.threshold, torch.full_like(sae.threshold, 0.25))
    runner.run()


def test_a_run_that_goes_on_keeps_its_weights(tmp_path: Path):
    fields = {
        "features": {"initial_weights": {"decoder_bound": 1.0, "search_decoder_norm": True}},
        "normalize_sae_decoder": False,
    }
    whole = train(run_config(tmp_path, n_checkpoints=2, **fields))
    checkpoint = min(int(path.name) for path in (tmp_path / "run").iterdir() if path.name.isdigit())
    folder = str(tmp_path / "run" / str(checkpoint))
    rest = train(run_config(tmp_path, resume_from_checkpoint=folder, **fields))
    assert_same_weights(rest, whole)


def test_a_run_without_rules_draws_as_before(tmp_path: Path):
    plain = make_runner(run_config(tmp_path / "a")).sae
    empty = make_runner(run_config(tmp_path / "b", features={"initial_weights": {}})).sae
    for name, value in plain.state_dict().items():
        assert torch.equal(empty.state_dict()[name], value)


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_both_systems_give_the_same_weights(architecture: str):
    ours, theirs = make(architecture), make(architecture)
    batch = batch_of(ours)
    rules = InitialWeights(
        decoder_bound=0.7,
        search_decoder_norm=True,
        encoder_as_decoder_transpose=1.0,
        center_pre_activations=True,
    )
    torch.manual_seed(1)
    draw_weights(ours, rules)
    fit_weights(ours, rules, batch)
    initializer = Initializer(
        InitializerConfig(
            decoder_uniform_bound=0.7,
            grid_search_init_norm=True,
            init_encoder_bias_with_mean_hidden_pre=True,
        )
    )
    torch.manual_seed(1)
    initializer.initialize_parameters(theirs)
    initializer.initialization_search(theirs, {theirs.cfg.hook_name: batch})
    for name, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value)
