"""Trained transcoders: formulas, files, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens.registry import get_sae_training_class
from sae_lens.saes import SAE, TrainingSAE, TrainStepInput
from sae_lens.saes.transcoder_training import TranscoderTraining
from tests.helpers import D_IN, D_SAE, activations, assert_close, randomize
from tests.saes.test_sparse_training import DEAD_FEATURES, assert_forms_agree
from tests.saes.test_sparse_training import pytestmark as needs_sparse_kernels

D_OUT = 12
KINDS = ("", "jumprelu_", "topk_", "batchtopk_")
ARCHITECTURES = [f"{kind}{name}" for kind in KINDS for name in ("transcoder", "skip_transcoder")]
every_transcoder = pytest.mark.parametrize("architecture", ARCHITECTURES)
DEAD = torch.arange(D_SAE) % 3 == 0


def make(architecture: str, seed: int = 0, **fields: Any) -> TrainingSAE:
    torch.manual_seed(seed)
    sae_class, config_class = get_sae_training_class(architecture)
    if "topk" in architecture:
        fields = {"k": 5, **fields}
    names = {"hook_name": "blocks.0.ln2.hook_normalized", "hook_name_out": "blocks.0.hook_mlp_out"}
    sae = sae_class(
        config_class(**{"d_in": D_IN, "d_sae": D_SAE, "d_out": D_OUT, **names, **fields})
    )
    randomize(sae)
    with torch.no_grad():
        sae.b_dec.copy_(torch.randn_like(sae.b_dec))
        if hasattr(sae, "W_skip"):
            assert not sae.W_skip.any()
            sae.W_skip.copy_(torch.randn_like(sae.W_skip))
    return sae


def one_step(sae: TrainingSAE, pairs: torch.Tensor, dead: torch.Tensor | None = None) -> Any:
    return sae.training_forward_pass(TrainStepInput(pairs, {"l1": 0.1}, dead))


@every_transcoder
def test_the_target_is_modelled_from_the_input(architecture: str):
    sae = make(architecture)
    pairs = activations(10, D_IN + D_OUT)
    x, y = pairs[:, :D_IN], pairs[:, D_IN:]
    output = one_step(sae, pairs, DEAD)
    hidden = x @ sae.W_enc + sae.b_enc
    norms = sae.W_dec.norm(dim=-1)
    features = torch.relu(hidden)
    if architecture.startswith("jumprelu"):
        features = features * (hidden > sae.threshold)
    elif "batch" in architecture:
        smallest = (features * norms).flatten().topk(50).values[-1]
        features = features * (features * norms >= smallest)
    elif "topk" in architecture:
        rank = hidden * norms
        features = features * (rank >= rank.topk(5, dim=-1).values[:, -1:])
    want = features @ sae.W_dec + sae.b_dec
    if "skip" in architecture:
        want = want + x @ sae.W_skip.T
    assert_close(output.sae_out, want, atol=1e-4)
    assert torch.equal(output.sae_in, y)
    assert_close(output.losses["mse_loss"], (want - y).pow(2).sum(-1).mean())
    sae.eval()
    assert_close(sae(x), want, atol=1e-4)
    output.loss.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name


@every_transcoder
def test_files_of_training_and_inference(architecture: str, tmp_path: Path):
    sae = make(architecture)
    if "topk" in architecture:
        sae.topk_threshold.fill_(0.4)
    x = activations(10)
    sae.save_model(tmp_path / "training")
    again = TrainingSAE.load_from_disk(tmp_path / "training")
    assert type(again) is type(sae)
    assert again.cfg.to_dict() == sae.cfg.to_dict() or "topk" not in architecture
    assert again.cfg.hook_name_out == "blocks.0.hook_mlp_out"
    assert_close(again.eval()(x), sae.eval()(x))
    sae.save_inference_model(tmp_path / "inference")
    loaded = [SAE.load_from_disk(tmp_path / name) for name in ("training", "inference")]
    skip = "skip_transcoder" if "skip" in architecture else "transcoder"
    expected = skip if architecture in ("transcoder", "skip_transcoder") else f"jumprelu_{skip}"
    for inference in loaded:
        assert inference.cfg.architecture == expected
        assert inference.cfg.metadata.hook_name_out == "blocks.0.hook_mlp_out"
        assert inference.cfg.d_out == D_OUT
    assert_close(loaded[0](x), loaded[1](x), atol=1e-4)
    if "topk" in architecture:
        hidden = (x @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1)
        features = hidden * (hidden > 0.4) / sae.W_dec.norm(dim=-1)
        want = features @ sae.W_dec + sae.b_dec
        want = want + x @ sae.W_skip.T if "skip" in architecture else want
        assert_close(loaded[1](x), want, atol=1e-4)
    else:
        assert_close(loaded[1](x), sae(x))


@every_transcoder
def test_folding_the_scale_of_both_activations(architecture: str):
    sae = make(architecture).eval()
    if "topk" in architecture:
        sae.topk_threshold.fill_(0.4)
    x, scale = activations(10), 2.5
    want = sae(scale * x) / scale
    sae.fold_activation_norm_scaling_factor(scale)
    assert_close(sae(x), want, atol=1e-4)


@needs_sparse_kernels
@pytest.mark.parametrize("dead", DEAD_FEATURES)
@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@every_transcoder
def test_the_sparse_form_of_a_step_agrees(architecture: str, normalization: str, dead: str):
    sae = make(architecture, normalize_activations=normalization)
    assert_forms_agree(sae, DEAD_FEATURES[dead])


def test_the_sparse_form_in_double_precision_and_without_rescaling():
    for dtype, options in (("float64", {}), ("float32", {"rescale_acts_by_decoder_norm": False})):
        sae = make("topk_skip_transcoder", dtype=dtype, **options)
        assert_forms_agree(sae, DEAD_FEATURES["some dead"])


@every_transcoder
def test_what_normalises_each_token_is_for_the_encoder_alone(architecture: str):
    sae = make(architecture, normalize_activations="layer_norm").eval()
    plain = make(architecture).eval()
    x = activations(10)
    normalised = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    want = plain.decode(plain.encode(normalised))
    if "skip" in architecture:
        want = want + x @ sae.W_skip.T
    assert_close(sae(x), want)
    components = sae.inference_components()
    inference = SAE.from_components(*components).eval()
    if "topk" not in architecture:
        assert_close(inference(x), want)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_the_threshold_of_topk_lets_k_pass_on_average(form: Any):
    sae = make("topk_transcoder", topk_threshold_lr=1.0)
    sae.sparse_kernels = form
    # tokens of very different strength: the weakest one's k-th feature is far below the others'
    x = activations(400) * torch.linspace(0.2, 2, 400)[:, None]
    output = one_step(sae, torch.cat([x, activations(400, D_OUT)], dim=-1))
    features = output.feature_acts
    features = features.to_dense() if features.is_sparse else features
    smallest = torch.where(features > 0, features, torch.inf).amin(dim=-1)
    assert sae.topk_threshold.item() == pytest.approx(smallest.mean().item(), rel=1e-5)
    inference = SAE.from_components(*sae.inference_components())
    l0 = (inference.encode(x) > 0).float().sum(dim=-1).mean().item()
    assert 0.7 * 5 < l0 < 1.5 * 5


def test_a_batch_without_features_leaves_the_threshold():
    for form in ("dense", "sparse"):
        sae = make("topk_skip_transcoder")
        sae.sparse_kernels = form
        with torch.no_grad():
            sae.b_enc.fill_(-100.0)
            sae.topk_threshold.fill_(0.3)
        one_step(sae, activations(8, D_IN + D_OUT))
        assert sae.topk_threshold == 0.3


def test_a_transcoder_learns_a_linear_map():
    torch.manual_seed(0)
    true = torch.randn(D_IN, D_OUT) / D_IN**0.5
    sae = make("skip_transcoder", l1_coefficient=0.0)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    history = []
    for step in range(60):
        x = activations(64, seed=step)
        output = one_step(sae, torch.cat([x, x @ true], dim=-1))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(output.losses["mse_loss"].item())
    assert history[-1] < 0.2 * history[0]


def test_initial_encoders():
    config_class = get_sae_training_class("transcoder").config_class
    same = TrainingSAE(config_class(d_in=D_IN, d_sae=D_SAE))
    assert torch.equal(same.W_enc, same.W_dec.T)
    other = TrainingSAE(config_class(d_in=D_IN, d_sae=D_SAE, d_out=D_OUT))
    for norms in (other.W_enc.norm(dim=0), other.W_dec.norm(dim=-1)):
        assert_close(norms, torch.full((D_SAE,), 0.1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input must be False"),
        ({"hook_name": "blocks.2.hook_mlp_in"}, "runs before hook_name"),
        ({"hook_name": "blocks.0.hook_resid_post"}, "runs before hook_name"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make("transcoder", **fields)


def test_k_of_a_token_is_a_whole_number():
    with pytest.raises(ValueError, match="k is 2.5"):
        make("topk_skip_transcoder", k=2.5)
    assert make("batchtopk_transcoder", k=2.5).cfg.k == 2.5


def test_batches_of_another_width_are_refused():
    sae = make("transcoder")
    assert isinstance(sae, TranscoderTraining)
    with pytest.raises(ValueError, match="16 \\+ 12 wide; this one is 16 wide"):
        one_step(sae, activations(4))
