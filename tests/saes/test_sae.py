"""Laws that hold for every SAE, over the list of architectures."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sae_lens.saes import SAE, SAEConfig, TrainingSAE, get_sae_class, register_sae_class
from sae_lens.saes.base import _disable_hooks
from sae_lens.saes.config import ArchitectureSAEConfig
from tests.helpers import (
    ARCHITECTURES,
    D_IN,
    D_SAE,
    NORMALIZATIONS,
    activations,
    assert_close,
    flat_config_dict,
    make_sae,
    make_training_sae,
    randomize,
)

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)


@every_architecture
def test_a_flat_config_gives_the_class_of_its_architecture(architecture: str):
    sae = make_sae(architecture)
    assert type(sae) is get_sae_class(architecture).sae_class
    assert isinstance(sae, SAE)
    assert isinstance(make_training_sae(architecture), TrainingSAE)
    assert type(SAE.from_dict(flat_config_dict(architecture))) is type(sae)


def test_sae_is_subscriptable_in_annotations():
    assert SAE[int] is SAE


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("standard", ["b_enc", "W_dec", "W_enc", "b_dec"]),
        ("topk", ["b_enc", "W_dec", "W_enc", "b_dec"]),
        ("gated", ["W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"]),
        ("jumprelu", ["threshold", "b_enc", "W_dec", "W_enc", "b_dec"]),
    ],
)
def test_parameters_order_and_initial_values(architecture: str, names: list[str]):
    torch.manual_seed(0)
    sae = SAE(SAEConfig.from_dict(flat_config_dict(architecture)))
    assert list(sae.state_dict()) == names
    assert sae.training
    assert sae.W_dec.shape == (D_SAE, D_IN)
    assert sae.W_enc.shape == (D_IN, D_SAE)
    assert sae.W_dec.abs().max() <= (6 / D_IN) ** 0.5
    assert sae.W_enc.abs().max() <= (6 / D_SAE) ** 0.5
    for name in set(names) - {"W_enc", "W_dec"}:
        assert not getattr(sae, name).any()
    # the draw order fixes what a seed gives
    torch.manual_seed(0)
    first = torch.nn.init.kaiming_uniform_(torch.empty(sae.W_enc.shape))
    drawn_first = sae.W_enc if architecture == "gated" else sae.W_dec
    torch.manual_seed(0)
    first = torch.nn.init.kaiming_uniform_(torch.empty(drawn_first.shape))
    assert torch.equal(first, drawn_first)


@every_architecture
@every_normalization
def test_copies_and_pickles_are_independent(architecture: str, normalization: str):
    sae = make_sae(architecture, normalize_activations=normalization)
    x = activations()
    want = sae(x)
    for twin in (copy.deepcopy(sae), pickle.loads(pickle.dumps(sae))):
        assert torch.equal(twin(x), want)
        twin.W_dec.data.zero_()
        twin(activations(3, seed=5))
    assert torch.equal(sae(x), want)


@every_architecture
@every_normalization
def test_decode_may_be_called_again(architecture: str, normalization: str):
    sae = make_sae(architecture, normalize_activations=normalization)
    features = sae.encode(activations())
    assert torch.equal(sae.decode(features), sae.decode(features))


@every_architecture
@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_decode_says_what_it_lacks(architecture: str, normalization: str):
    sae = make_sae(architecture, normalize_activations=normalization)
    with pytest.raises(ValueError, match="call encode"):
        sae.decode(torch.zeros(2, D_SAE))
    sae.encode(activations(3))
    with pytest.raises(ValueError, match="shape"):
        sae.decode(torch.zeros(2, D_SAE))


@every_architecture
@every_normalization
def test_saving_and_loading_are_inverse(architecture: str, normalization: str, tmp_path: Path):
    sae = make_sae(architecture, normalize_activations=normalization)
    weights_path, cfg_path, sparsity_path = sae.save_model(tmp_path, sparsity=torch.arange(4.0))
    assert (weights_path.name, cfg_path.name, sparsity_path.name) == (
        "sae_weights.safetensors",
        "cfg.json",
        "sparsity.safetensors",
    )
    assert list(load_file(sparsity_path)) == ["sparsity"]
    for loaded in (SAE.load_from_disk(tmp_path), SAE.load_from_pretrained(str(tmp_path))):
        assert loaded.cfg.to_dict() == {**sae.cfg.to_dict(), "seqpos_slice": (None,)}
        assert list(loaded.state_dict()) == list(sae.state_dict())
        assert torch.equal(loaded(activations()), sae(activations()))
        assert all(p.requires_grad for p in loaded.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["sae_weights.safetensors", "cfg.json", "sparsity.safetensors"]
    )


@every_architecture
def test_the_file_holds_both_key_sets(architecture: str, tmp_path: Path):
    sae = make_sae(architecture)
    sae.save_model(tmp_path)
    written = json.loads((tmp_path / "cfg.json").read_text())
    assert set(sae.cfg.to_dict()) <= set(written)
    assert written["metadata"]["hook_name"] == sae.cfg.hook_name
    assert written["metadata"]["sae_lens_version"] >= "6"
    assert written["reshape_activations"] == "none"
    assert written["normalize_activations"] == "none"
    if architecture == "topk":
        assert (written["k"], written["rescale_acts_by_decoder_norm"]) == (5, False)
        assert written["activation_fn_kwargs"] == {"k": 5}


@every_architecture
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_decoder_norm_fold_keeps_reconstructions(architecture: str, data: st.DataObject):
    seed = data.draw(st.integers(0, 2**16))
    sae = make_sae(architecture, seed=seed)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) * 3 + 0.1)
        sae.W_dec[0] = 0  # a dead row must not make NaN
    if architecture == "topk":
        sae.cfg.rescale_acts_by_decoder_norm = True
    x = activations(seed=seed)
    norms = sae.W_dec.norm(dim=-1)
    features, out = sae.encode(x), sae(x)
    sae.fold_W_dec_norm()
    assert_close(sae(x), out, atol=1e-4)
    assert_close(sae.W_dec.norm(dim=-1)[1:], torch.ones(D_SAE - 1))
    scale = torch.ones(D_SAE) if architecture == "topk" else torch.where(norms > 0, norms, 1.0)
    assert_close(sae.encode(x), features * scale, atol=1e-4)
    folded = copy.deepcopy(sae.state_dict())
    with torch.inference_mode():
        sae.fold_W_dec_norm()
    for name, value in sae.state_dict().items():
        assert_close(value, folded[name], atol=1e-6)


@every_architecture
@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.1, 20.0), seed=st.integers(0, 2**16))
def test_activation_scale_fold(architecture: str, scale: float, seed: int):
    sae = make_sae(architecture, seed=seed, normalize_activations="expected_average_only_in")
    x = activations(seed=seed)
    want = sae(x * scale) / scale
    sae.fold_activation_norm_scaling_factor(scale)
    assert sae.cfg.normalize_activations == "none"
    assert_close(sae(x), want, atol=1e-4, rtol=1e-3)


def test_topk_fold_warns_when_the_selection_may_change(caplog: pytest.LogCaptureFixture):
    make_sae("topk").fold_W_dec_norm()
    assert "changes which k features" in caplog.text


@every_architecture
def test_the_error_term_restores_the_input_and_passes_no_gradient(architecture: str):
    sae = make_sae(architecture)
    x = activations().requires_grad_()
    sae.use_error_term = True
    assert_close(sae(x), x)
    (gradient,) = torch.autograd.grad(sae(x).sum(), x)
    sae.use_error_term = False
    (without,) = torch.autograd.grad(sae(x).sum(), x)
    assert_close(gradient, without)


@every_architecture
def test_the_clean_pass_leaves_no_trace(architecture: str):
    sae = make_sae(architecture)
    sae.use_error_term = True
    seen: list[str] = []
    sae.run_with_hooks(
        activations(),
        fwd_hooks=[(name, lambda value, hook: seen.append(hook.name)) for name in sae.hook_dict],
    )
    assert seen == [
        "hook_sae_input",
        "hook_sae_acts_pre",
        "hook_sae_acts_post",
        "hook_sae_recons",
        "hook_sae_error",
        "hook_sae_output",
    ]
    assert list(sae.hook_dict) == [
        "hook_sae_input",
        "hook_sae_acts_pre",
        "hook_sae_acts_post",
        "hook_sae_output",
        "hook_sae_recons",
        "hook_sae_error",
    ]


def test_disabled_hooks_come_back_after_an_exception():
    sae = make_sae()
    before = dict(sae.hook_dict)
    with pytest.raises(KeyError):
        with _disable_hooks(sae):
            assert sae.hook_sae_input is not before["hook_sae_input"]
            raise KeyError
    assert sae.hook_sae_input is before["hook_sae_input"]


@every_architecture
def test_dtype_and_device_follow_every_kind_of_move(architecture: str):
    sae = make_sae(architecture)
    assert sae.to("cpu") is sae
    sae.to(dtype=torch.float64)
    assert (sae.dtype, sae.cfg.dtype) == (torch.float64, "torch.float64")
    assert sae(activations()).dtype == torch.float64
    torch.nn.Sequential(sae).half()
    assert (sae.dtype, sae.cfg.dtype) == (torch.float16, "torch.float16")
    sae.to(torch.zeros(1, dtype=torch.float32))
    assert (sae.dtype, sae.device) == (torch.float32, torch.device("cpu"))
    sae.to("cpu", torch.float16, device=torch.device("cpu"), dtype=torch.float64)
    assert (sae.dtype, sae.cfg.dtype, sae.cfg.device) == (torch.float64, "torch.float64", "cpu")
    sae.to(tensor=torch.zeros(1), non_blocking=True)
    assert (sae.dtype, sae.cfg.dtype) == (torch.float32, "torch.float32")
    # both used to be plain attributes, which callers assigned to after a move
    sae.dtype, sae.device = torch.float64, "cpu"
    assert (sae.W_enc.dtype, sae.cfg.dtype) == (torch.float64, "torch.float64")
    assert sae.device == sae.W_enc.device == torch.device("cpu")


@every_architecture
def test_hook_z_splits_and_joins_heads(architecture: str):
    sae = make_sae(architecture, hook_name="blocks.0.attn.hook_z")
    z = activations(6).view(2, 3, 4, 4)
    assert sae.hook_z_reshaping_mode
    flat = sae.decode(torch.zeros(2, 3, D_SAE))
    assert flat.shape == (2, 3, D_IN)
    out = sae(z)
    assert out.shape == z.shape
    # the head width is that of the last encode
    assert sae(z.view(2, 3, 2, 8)).shape == (2, 3, 2, 8)
    sae.turn_off_forward_pass_hook_z_reshaping()
    assert_close(sae(z.flatten(-2)), out.flatten(-2))
    with pytest.raises(ValueError, match="_z"):
        make_sae(architecture).turn_on_forward_pass_hook_z_reshaping()


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "topk"])
def test_parameters_may_be_replaced_by_narrower_ones(architecture: str):
    sae = make_sae(architecture)
    x = activations(4).view(2, 2, D_IN)
    full = sae.encode(x)
    columns = torch.tensor([3, 7, 11])
    names = [n for n, p in sae.named_parameters() if p.shape[-1] == D_SAE or n == "W_dec"]
    with torch.inference_mode():
        kept = {name: getattr(sae, name) for name in names}
        for name in names:
            axis = 0 if name == "W_dec" else -1
            narrow = kept[name].index_select(axis, columns)
            setattr(sae, name, torch.nn.Parameter(narrow))
        part = sae.encode(x)
        for name in names:
            setattr(sae, name, kept[name])
        assert torch.equal(sae.encode(x), full)
    assert_close(part, full[..., columns])


def test_finetuning_factor_scales_features_in_decode_only(tmp_path: Path):
    for architecture in ARCHITECTURES:
        sae = make_sae(architecture, finetuning_scaling_factor=True)
        x = activations()
        features = sae.encode(x)
        want = (features * sae.finetuning_scaling_factor) @ sae.W_dec + sae.b_dec
        assert_close(sae.decode(features), want)
        sae.save_model(tmp_path / architecture)
        loaded = SAE.load_from_disk(tmp_path / architecture)
        assert loaded.cfg.finetuning_scaling_factor
        assert torch.equal(loaded(x), sae(x))


def test_model_kwargs_are_pointed_out():
    fields = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    with pytest.warns(UserWarning, match="from_pretrained_no_processing"):
        SAE(SAEConfig.from_dict(flat_config_dict(**fields)))


@pytest.mark.no_shape_checks
def test_compiles():
    sae = make_sae("jumprelu", normalize_activations="layer_norm")
    compiled = torch.compile(sae, backend="eager")
    assert_close(compiled(activations()), sae(activations()))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"Unknown architecture 'standart'.*'standard'"):
        SAE(SAEConfig(**flat_config_dict("standart")))
    with pytest.raises(ValueError, match="Unknown activation function: 'gelu'"):
        make_sae(activation_fn_str="gelu")
    with pytest.raises(ValueError, match="activation_fn_kwargs.k must be provided"):
        make_sae("topk", activation_fn_kwargs={})
    with pytest.raises(KeyError, match="float8"):
        make_sae(dtype="float8")


class DoubledSAE(SAE):
    """An architecture of a user: features twice as large."""

    def initialize_weights(self) -> None:
        self.initialize_weights_basic()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode_standard(x) * 2


class DoubledSAEConfig(ArchitectureSAEConfig):
    architecture = "doubled"


def test_users_add_architectures(tmp_path: Path):
    register_sae_class("doubled", DoubledSAE, DoubledSAEConfig)
    sae = SAE(DoubledSAEConfig(d_in=D_IN, d_sae=D_SAE, architecture="doubled"))
    assert isinstance(sae, DoubledSAE)
    randomize(sae)
    sae.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert isinstance(loaded, DoubledSAE)
    assert torch.equal(loaded(activations()), sae(activations()))
    with pytest.raises(ValueError, match="already registered"):
        register_sae_class("doubled", SAE, SAEConfig)


def test_configs_are_dataclasses_that_rebuild():
    sae = make_sae("topk")
    assert SAEConfig(**asdict(sae.cfg)) == sae.cfg
    assert len(sae.cfg.to_dict()) == 22
    assert json.dumps(sae.cfg.to_dict())
