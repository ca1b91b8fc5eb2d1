"""Crosscoders and cross-layer transcoders: shapes, files, folds, refusals, and what they find."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_lens.errors import SAELoadError
from sae_lens.registry import get_sae_training_class
from sae_lens.saes import SAE, SAEConfig, TrainingSAE, TrainStepInput
from sae_lens.saes.cross_layer_transcoder import CrossLayerMaps
from sae_lens.saes.normalization import denormalize, normalize
from tests.helpers import D_SAE, activations, assert_close, randomize, several_hooks_configs

HOOKS, D = 3, 8
CONFIGS = several_hooks_configs(HOOKS, D)
ALL = list(CONFIGS)
CROSSCODERS = [name for name in ALL if "transcoder" not in name]
CROSS_LAYER = [name for name in ALL if "transcoder" in name]


def make(architecture: str, **fields: Any) -> Any:
    config = copy.deepcopy(several_hooks_configs(HOOKS, D, **fields)[architecture])
    torch.manual_seed(0)
    sae = TrainingSAE(config)
    randomize(sae)
    if "topk_threshold" in dict(sae.named_buffers()):
        sae.topk_threshold.fill_(0.05)
    return sae.eval()


def inputs(n: int = 5) -> Tensor:
    return activations(n * HOOKS, D).view(n, HOOKS, D)


def batch_of(sae: Any, n: int = 12) -> Tensor:
    """Rows for training: with the outputs, where these are others."""
    columns = HOOKS * (2 if isinstance(sae, CrossLayerMaps) else 1)
    return activations(n * columns, D, seed=3).view(n, columns, D)


def inference(sae: Any, folder: Path) -> Any:
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize("architecture", ALL)
def test_inputs_come_with_or_without_an_axis_for_the_hooks(architecture: str) -> None:
    sae = make(architecture)
    x = inputs()
    features = sae.encode(x)
    assert features.shape == (5, D_SAE)
    assert sae.decode(features).shape == sae(x).shape == x.shape
    flat = sae(x.flatten(1))
    assert_close(flat, sae(x).flatten(1))
    assert_close(sae.encode(x.view(5, 1, HOOKS, D)), features.unsqueeze(1))
    with pytest.raises(ValueError, match=r"\[\.\.\., 3, 8\] \(hooks, width\) or \[\.\.\., 24\]"):
        sae.encode(torch.zeros(5, 2, D))


@pytest.mark.parametrize("architecture", ALL)
def test_training_takes_both_forms_of_a_batch(architecture: str) -> None:
    sae = make(architecture).train()
    rows = batch_of(sae)
    passes = [
        copy.deepcopy(sae).training_forward_pass(TrainStepInput(x, {"l1": 0.3}))
        for x in (rows, rows.flatten(1))
    ]
    assert_close(passes[0].loss, passes[1].loss)
    error = (passes[0].sae_out - rows[:, -HOOKS:].flatten(1)).pow(2).sum(-1).mean()
    assert_close(passes[0].losses["mse_loss"], error)


def test_a_crosscoder_sums_its_encoders_and_has_a_decoder_for_each_hook() -> None:
    sae = make("crosscoder")
    x = inputs()
    hidden = sum(x[:, h] @ sae.encoders[h] for h in range(HOOKS)) + sae.b_enc
    assert_close(sae.encode(x), torch.relu(hidden))
    features = sae.encode(x)
    for h in range(HOOKS):
        assert_close(
            sae.decode(features)[:, h], features @ sae.decoders[:, h] + sae.b_dec.view(HOOKS, D)[h]
        )


def test_a_feature_costs_the_sum_of_its_decoder_norms() -> None:
    sae = make("crosscoder").train()
    x = inputs(12)
    output = sae.training_forward_pass(TrainStepInput(x, {"l1": 0.7}))
    norms = sum(sae.decoders[:, h].norm(dim=-1) for h in range(HOOKS))
    cost = 0.7 * (output.feature_acts * norms).sum(-1).mean()
    assert_close(output.losses["l1_loss"], cost)
    sae.cfg.decoder_norm = "l2"
    output = sae.training_forward_pass(TrainStepInput(x, {"l1": 0.7}))
    cost = 0.7 * (output.feature_acts * sae.W_dec.norm(dim=-1)).sum(-1).mean()
    assert_close(output.losses["l1_loss"], cost)


def test_the_first_layer_writes_to_all_and_the_last_to_its_own() -> None:
    sae = make("cross_layer_transcoder")
    x = inputs()
    d = D_SAE // HOOKS
    for layer in range(HOOKS):
        changed = x.clone()
        changed[:, layer] += 1.0
        difference = (sae(changed) - sae(x)).detach().abs().amax(dim=(0, 2))
        assert (difference[:layer] == 0).all() and (difference[layer:] > 1e-3).all()
        features = sae.encode(x)[:, layer * d : (layer + 1) * d]
        want = torch.relu(x[:, layer] @ sae.encoders()[layer] + sae.b_enc.view(HOOKS, d)[layer])
        assert_close(features, want)


def test_the_cost_of_a_cross_layer_feature_is_that_of_the_paper() -> None:
    sae = make("jumprelu_cross_layer_transcoder").train()
    rows = batch_of(sae)
    output = sae.training_forward_pass(TrainStepInput(rows, {"l0": 0.7}))
    norms = torch.cat([W.norm(dim=-1) for W in sae.decoders()])
    c = sae.cfg.jumprelu_tanh_scale
    cost = 0.7 * torch.tanh(c * output.feature_acts * norms).sum(-1).mean()
    assert_close(output.losses["l0_loss"], cost)
    assert "pre_act_loss" in output.losses


def test_what_the_selections_keep() -> None:
    x = inputs(12)
    topk = make("topk_crosscoder")
    assert ((topk.encode(x) > 0).sum(-1) == 3).all()
    by_layer = make("topk_cross_layer_transcoder").encode(x).view(12, HOOKS, -1)
    assert ((by_layer > 0).sum(-1) <= 3).all() and ((by_layer > 0).sum(-1) == 3).any()
    batch = make("batchtopk_cross_layer_transcoder")
    batch.b_enc.data += 1
    assert (batch.encode(x) > 0).sum() == 3 * HOOKS * 12


@pytest.mark.parametrize("kind", ["none", "layer_norm"])
@pytest.mark.parametrize("architecture", CROSS_LAYER)
@torch.no_grad()
def test_layer_by_layer_is_all_at_once(architecture: str, kind: str, tmp_path: Path) -> None:
    x = inputs() * 3 + 1
    sae = inference(make(architecture, normalize_activations=kind), tmp_path)
    trained = make(architecture, normalize_activations=kind)
    for clt in (sae, trained):
        features = [clt.encode_hook(layer, x[:, layer]) for layer in range(HOOKS)]
        if "batchtopk" in architecture and clt is trained:
            # in training it selects over the batch; layer by layer, by the running threshold
            assert_close(torch.cat(features, -1), sae.encode(x))
            continue
        assert_close(torch.cat(features, -1), clt.encode(x))
        for layer in range(HOOKS):
            assert_close(clt.decode_hook(layer, features), clt(x)[:, layer])


@pytest.mark.parametrize("architecture", ALL)
@torch.no_grad()
def test_saved_and_loaded(architecture: str, tmp_path: Path) -> None:
    trained = make(architecture)
    x = inputs()
    trained.save_model(tmp_path / "checkpoint")
    again = TrainingSAE.load_from_disk(tmp_path / "checkpoint").eval()
    assert type(again) is type(trained)
    assert_close(again(x), trained(x))
    sae = inference(trained, tmp_path / "inference")
    assert type(sae).__name__.startswith("JumpReLU") == (
        "jump" in architecture or "batch" in architecture
    )
    assert sae.cfg.hook_names == trained.cfg.hook_names
    if "batchtopk" not in architecture:
        assert_close(sae(x), trained(x))
    assert_close(SAE.load_from_disk(tmp_path / "checkpoint")(x), sae(x))
    sae.save_model(tmp_path / "again")
    assert_close(SAE.load_from_disk(tmp_path / "again")(x), sae(x))
    assert_close(SAE.from_dict(sae.cfg.to_dict()).encode(x) * 0, sae.encode(x) * 0)


def test_the_shapes_in_files(tmp_path: Path) -> None:
    make("jumprelu_crosscoder").save_inference_model(tmp_path / "crosscoder")
    tensors = load_file(tmp_path / "crosscoder" / "sae_weights.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (HOOKS, D, D_SAE), "W_dec": (D_SAE, HOOKS, D), "b_dec": (HOOKS, D),
        "b_enc": (D_SAE,), "threshold": (D_SAE,),
    }  # fmt: skip
    make("batchtopk_cross_layer_transcoder").save_inference_model(tmp_path / "clt")
    tensors = load_file(tmp_path / "clt" / "sae_weights.safetensors")
    d = D_SAE // HOOKS
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (HOOKS, D, d), "b_enc": (HOOKS, d), "threshold": (HOOKS, d),
        "b_dec": (HOOKS, D), "W_dec_0": (d, 3, D), "W_dec_1": (d, 2, D), "W_dec_2": (d, 1, D),
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ["crosscoder", "cross_layer_transcoder"])
def test_damaged_files_are_refused(architecture: str, tmp_path: Path) -> None:
    sae = make(architecture)
    values, tensors = sae.inference_components()
    missing = dict(tensors)
    missing.pop("W_dec" if architecture == "crosscoder" else "W_dec_1")
    with pytest.raises(SAELoadError, match="W_dec"):
        SAE.from_components(dict(values), missing)
    values["d_in"] = D + 1
    with pytest.raises(SAELoadError, match="shape"):
        SAE.from_components(values, dict(tensors))


@pytest.mark.parametrize("architecture", ALL)
@torch.no_grad()
def test_decoder_norms_fold_away(architecture: str, tmp_path: Path) -> None:
    sae = inference(make(architecture), tmp_path)
    x = inputs()
    before = sae(x)
    sae.fold_W_dec_norm()
    assert_close(sae(x), before)
    assert_close(sae.decoder_norms(), torch.ones(D_SAE))
    features = sae.encode(x)
    sae.fold_W_dec_norm()
    assert_close(sae.encode(x), features)


@pytest.mark.parametrize("architecture", ALL)
@torch.no_grad()
def test_a_factor_for_each_hook_folds_into_the_weights(architecture: str, tmp_path: Path) -> None:
    sae = make(architecture, normalize_activations="expected_average_only_in")
    x = inputs()
    columns = batch_of(sae).shape[1]
    factors = torch.rand(columns, 1) + 0.5
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(factors.expand(-1, D).flatten())
    assert folded.cfg.normalize_activations == "none"
    assert_close(folded.encode(x), sae.encode(factors[:HOOKS] * x))
    assert_close(folded(x), sae(factors[:HOOKS] * x) / factors[-HOOKS:])
    saved = inference(sae, tmp_path / "scaled")
    assert_close(inference(folded, tmp_path / "raw").encode(x), saved.encode(factors[:HOOKS] * x))
    one = copy.deepcopy(sae)
    one.fold_activation_norm_scaling_factor(2.0)
    assert_close(one(x), sae(2.0 * x) / 2.0)


@pytest.mark.parametrize("kind", ["constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("architecture", ALL)
@torch.no_grad()
def test_tokens_are_normalised_hook_by_hook(architecture: str, kind: str) -> None:
    sae, plain = make(architecture, normalize_activations=kind), make(architecture)
    x = inputs() * torch.tensor([1.0, 5.0, 0.3]).view(HOOKS, 1) + 1
    parts = [normalize(kind, x[:, hook]) for hook in range(HOOKS)]
    normalised = torch.stack([part for part, _ in parts], dim=1)
    out = plain(normalised)
    if architecture in CROSSCODERS:
        undone = [denormalize(kind, out[:, h], stats) for h, (_, stats) in enumerate(parts)]
        out = torch.stack(undone, dim=1)
        assert_close(sae.as_decoded(x.flatten(1)), normalised.flatten(1))
    assert_close(sae(x), out)


@pytest.mark.parametrize("architecture", ALL)
def test_copies_and_dtypes(architecture: str) -> None:
    sae = make(architecture)
    x = inputs()
    twin = copy.deepcopy(sae)
    assert_close(twin(x), sae(x))
    assert twin.to(dtype=torch.float64).encode(x.double()).dtype == torch.float64


@pytest.mark.parametrize("architecture", ALL)
def test_bad_settings_are_refused(architecture: str) -> None:
    config_class = get_sae_training_class(architecture).config_class
    good = {
        name: value
        for name in ("d_in", "d_sae", "hook_names", "hook_names_out", "k")
        if (value := getattr(CONFIGS[architecture], name, None)) is not None
    }
    reads = good["hook_names"]
    cases: dict[str, dict[str, Any]] = {
        "more than once": {"hook_names": [reads[0], *reads[:-1]]},
        "at least two": {
            "hook_names": reads[:1],
            "hook_names_out": good.get("hook_names_out", [])[:1],
        },
        "must be a list of names": {"hook_names": "blocks.0.hook_resid_pre"},
        "apply_b_dec_to_input must be False": {"apply_b_dec_to_input": True},
        "normalize_activations is 'batch_norm'": {"normalize_activations": "batch_norm"},
        "hook_head_index is 0": {"hook_head_index": 0},
    }
    if "topk" in architecture:
        cases["k is 49"] = {"k": D_SAE + 1}
    if architecture in CROSS_LAYER:
        writes = good["hook_names_out"]
        cases |= {
            "an output for each input": {"hook_names_out": writes[:-1]},
            "runs before its input": {"hook_names_out": [writes[1], writes[2], writes[0]]},
            "order of the layers": {
                "hook_names": reads[::-1],
                "hook_names_out": ["blocks.9.a", "blocks.9.b", "blocks.9.c"],
            },
            "runs before its input 'blocks.0.hook_mlp_out'": {
                "hook_names": writes,
                "hook_names_out": reads,
            },
            "hook_names_out is .* order": {
                "hook_names_out": ["blocks.8.a", "blocks.9.b", "blocks.7.c"]
            },
            "multiple of the number of layers": {"d_sae": 50},
        }
        if "topk" in architecture:
            cases["k is 17"] = {"k": D_SAE // HOOKS + 1}
    else:
        cases["model_names names base more than once"] = {"model_names": ["base", "base"]}
        cases["decoder_norm is 'l3'"] = {"decoder_norm": "l3"}
        for case in cases.values():
            case.pop("hook_names_out", None)
    for message, fields in cases.items():
        with pytest.raises(ValueError, match=message):
            config_class(**{**good, **fields})


def test_batches_of_another_width_and_error_terms_are_refused() -> None:
    sae = make("cross_layer_transcoder")
    with pytest.raises(ValueError, match=r"2 \* 3 \* 8 wide; this one is 24 wide"):
        sae.training_forward_pass(TrainStepInput(inputs().flatten(1), {"l1": 1.0}))
    values, _ = sae.inference_components()
    with pytest.raises(ValueError, match="no error term"):
        SAE(SAEConfig.from_dict(values), use_error_term=True)
    crosscoder = make("crosscoder")
    crosscoder.use_error_term = True
    assert_close(crosscoder(inputs()), inputs())


def test_hooks_of_several_models_are_sites_in_turn() -> None:
    config_class = get_sae_training_class("crosscoder").config_class
    config = config_class(
        d_in=D, d_sae=D_SAE, hook_names=["a.1", "a.2"], model_names=["base", "tuned"]
    )
    assert list(config.sites) == [(0, "a.1"), (0, "a.2"), (1, "a.1"), (1, "a.2")]
    assert config.hook_name == "a.1" and config.hook_layer == 1


def test_a_crosscoder_tells_shared_features_from_exclusive_ones() -> None:
    """Eight true features: in both models, in the first alone, or in the second alone."""
    torch.manual_seed(0)
    d_in, n_true = 16, 8
    directions = torch.linalg.qr(torch.randn(2, d_in, d_in)).Q[:, :n_true]
    strength = torch.tensor([[1.0, 1.0]] * 4 + [[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        f = (torch.rand(n, n_true) < 0.15) * (torch.rand(n, n_true) + 0.5)
        return torch.einsum("nf,fm,mfd->nmd", f, strength, directions), f

    config_class = get_sae_training_class("crosscoder").config_class
    config = config_class(
        d_in=d_in, d_sae=12, hook_names=["hook"], model_names=["base", "tuned"], l1_coefficient=0.03
    )
    sae: Any = TrainingSAE(config)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for step in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (600 - step) / 200)
        output = sae.training_forward_pass(TrainStepInput(batch(256)[0], {"l1": 0.03}))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()

    x, truth = batch(2000)
    with torch.no_grad():
        found = sae.encode(x)
        alike = torch.nn.functional.normalize(truth - truth.mean(0), dim=0).T @ (
            torch.nn.functional.normalize(found - found.mean(0), dim=0)
        )
        best = alike.max(dim=1)
        shares = sae.relative_decoder_norms()[best.indices]
    assert best.values.min() > 0.9 and len(set(best.indices.tolist())) == n_true
    assert (shares[:4] - 0.5).abs().max() < 0.1
    assert shares[4:6, 0].min() > 0.95 and shares[6:, 1].min() > 0.95
    assert_close(sae.relative_decoder_norms().sum(dim=1), torch.ones(12))
