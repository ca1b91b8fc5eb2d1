"""Laws and hand-computed cases of training SAEs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_lens.saes import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    SAEMetadata,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepInput,
    get_sae_training_class,
)
from sae_lens.saes.activation_fns import JumpReLU, Step, rectangle
from sae_lens.saes.losses import topk_aux_acts
from tests.helpers import (
    ARCHITECTURES,
    D_IN,
    D_SAE,
    NORMALIZATIONS,
    activations,
    assert_close,
    flat_config_dict,
    make_training_sae,
    randomize,
)

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
V6_ARCHITECTURES = (
    *ARCHITECTURES,
    "batchtopk",
    "matryoshka_batchtopk",
    "abstopk",
    "matching_pursuit",
)


def make_v6(architecture: str, seed: int = 0, **fields) -> TrainingSAE:
    torch.manual_seed(seed)
    sae_class, config_class = get_sae_training_class(architecture)
    if "topk" in architecture:
        fields = {"k": 5, **fields}
    if architecture == "matryoshka_batchtopk":
        fields = {"matryoshka_widths": [8, 20, D_SAE], **fields}
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **fields))
    randomize(sae)
    return sae


def step(sae: TrainingSAE, x: Tensor, coefficient: float = 0.1, dead: Tensor | None = None):
    return sae.training_forward_pass(x, coefficient, dead)


@every_architecture
def test_both_argument_styles_give_the_same(architecture: str):
    sae = make_training_sae(architecture)
    x, dead = activations(), torch.arange(D_SAE) % 3 == 0
    old = sae.training_forward_pass(
        sae_in=x, current_l1_coefficient=0.3, dead_neuron_mask=dead
    ).loss
    for name in ("l1", "l0"):
        new = sae.training_forward_pass(TrainStepInput(x, {name: 0.3}, dead)).loss
        assert torch.equal(old, new)
    assert torch.equal(
        old, sae.training_forward_pass(step_input=TrainStepInput(x, {"l1": 0.3}, dead)).loss
    )
    with pytest.raises(TypeError, match="sae_in"):
        sae.training_forward_pass()


@every_architecture
def test_the_loss_is_the_sum_of_its_parts(architecture: str):
    output = step(make_training_sae(architecture), activations(), dead=torch.ones(D_SAE) > 0)
    assert_close(output.loss, torch.stack(list(output.losses.values())).sum())
    names = {
        "standard": {"l1_loss"},
        "gated": {"l1_loss", "auxiliary_reconstruction_loss"},
        "jumprelu": {"l0_loss"},
        "topk": {"auxiliary_reconstruction_loss"},
    }
    assert set(output.losses) == {"mse_loss"} | names[architecture]


@every_architecture
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_training_and_inference_agree(architecture: str, normalization: str, tmp_path: Path):
    sae = make_training_sae(architecture, normalize_activations=normalization)
    x = activations()
    assert torch.equal(sae.encode_with_hidden_pre_fn(x)[0], sae.encode(x))
    sae.save_model(tmp_path)
    inference, again = SAE.load_from_disk(tmp_path), TrainingSAE.load_from_disk(tmp_path)
    assert not isinstance(inference, TrainingSAE)
    assert again.cfg.form == "v5"
    assert_close(inference.encode(x), sae.encode(x))
    assert_close(inference(x), sae(x))
    assert_close(again(x), sae(x))
    assert again.cfg.to_dict() == sae.cfg.to_dict()


@every_architecture
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_error_term_restores_the_input(architecture: str, normalization: str):
    sae = make_training_sae(architecture, normalize_activations=normalization)
    x = activations()
    assert (sae(x) - x).abs().max() > 0.1
    sae.use_error_term = True
    assert_close(sae(x), x)


def test_gated_losses_see_the_processed_input():
    sae = make_training_sae("gated", normalize_activations="constant_norm_rescale")
    x = activations()
    small, large = (step(sae, scale * x, 0.5) for scale in (1, 7))
    # tokens of any norm are the same to the encoder, and so to the losses of its gate
    for name in ("l1_loss", "auxiliary_reconstruction_loss"):
        assert_close(large.losses[name], small.losses[name])
    assert_close(large.feature_acts, small.feature_acts)
    assert_close(large.losses["mse_loss"], 49 * small.losses["mse_loss"], rtol=1e-3)
    seen = [("hook_sae_input", lambda value, hook: value * 0)]
    with sae.hooks(fwd_hooks=seen):
        blank = step(sae, x, 0.5)
    assert_close(blank.losses["l1_loss"], step(sae, 0 * x, 0.5).losses["l1_loss"])


@pytest.mark.parametrize("architecture", V6_ARCHITECTURES)
def test_v6_form_survives_files(architecture: str, tmp_path: Path):
    sae = make_v6(architecture, metadata=SAEMetadata(model_name="tiny", hook_name="hook_embed"))
    assert sae.cfg.form == "v6"
    sae.save_model(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    assert type(again) is type(sae)
    assert again.cfg.to_dict() == sae.cfg.to_dict()
    assert again.cfg.metadata.model_name == "tiny"
    x = activations()
    assert torch.equal(step(again, x).loss, step(sae, x).loss)


def test_v5_files_do_not_name_a_training_architecture(tmp_path: Path):
    make_training_sae("topk").save_model(tmp_path)
    assert "training_architecture" not in (tmp_path / "cfg.json").read_text()
    make_v6("topk").save_model(tmp_path)
    assert '"training_architecture": "topk"' in (tmp_path / "cfg.json").read_text()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "abstopk", "matching_pursuit"])
def test_inference_model_of_v6(architecture: str, tmp_path: Path):
    sae = make_v6(architecture).eval()
    sae.W_dec.data.mul_(torch.rand(D_SAE, 1) + 0.5)
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture == architecture
    assert_close(loaded(activations()), sae(activations()))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_inference_model_of_batchtopk_is_jumprelu(architecture: str, tmp_path: Path):
    sae = make_v6(architecture).eval()
    sae.topk_threshold.fill_(0.4)
    sae.W_dec.data.mul_(torch.rand(D_SAE, 1) * 4 + 0.5)
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture == "jumprelu"
    x = activations()
    scaled = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1)
    features = scaled * (scaled > 0.4)
    assert_close(loaded.encode(x), features)
    assert_close(loaded(x), (features / sae.W_dec.norm(dim=-1)) @ sae.W_dec + sae.b_dec)


def test_batchtopk_selects_over_the_batch_and_follows_the_smallest_kept():
    sae = make_v6("batchtopk", k=2.5, topk_threshold_lr=0.25)
    x = activations(4)
    output = step(sae, x)
    acts = output.feature_acts.detach().to_dense()
    assert (acts > 0).sum() == 10
    pre = torch.relu(((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1))
    assert_close(acts[acts > 0].sort().values, pre.flatten().topk(10).values.sort().values)
    assert float(sae.topk_threshold) == pytest.approx(0.25 * float(acts[acts > 0].min()))
    assert output.metrics["topk_threshold"] == sae.topk_threshold
    sae.W_enc.data.zero_()
    sae.b_enc.data.fill_(-1)
    before = float(sae.topk_threshold)
    step(sae, x)
    assert float(sae.topk_threshold) == before


def test_aux_loss_worked_value():
    sae = make_training_sae("topk", d_in=3, d_sae=4, activation_fn_kwargs={"k": 2})
    sae.W_dec.data.fill_(2.0)
    sae.b_dec.data.zero_()
    hidden_pre = torch.tensor([[1.0, -2, 3, -4], [1, 0, -3, -4]])
    dead = torch.tensor([False, True, False, True])
    loss = sae.calculate_topk_aux_loss(
        sae_in=torch.tensor([[2.0, 1, 3], [5, 4, 6]]),
        sae_out=torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
        hidden_pre=hidden_pre,
        dead_neuron_mask=dead,
    )
    assert loss.item() == pytest.approx(314.0)
    assert_close(topk_aux_acts(1, hidden_pre, dead), torch.tensor([[0.0, -2, 0, 0], [0, 0, 0, 0]]))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_aux_loss_does_not_pull_on_live_features(normalization: str):
    sae = make_training_sae("topk", normalize_activations=normalization)
    dead = torch.arange(D_SAE) < 10
    output = step(sae, activations(), dead=dead)
    output.losses["auxiliary_reconstruction_loss"].backward()
    assert sae.W_enc.grad is not None
    assert not sae.W_enc.grad[:, ~dead].any()
    assert sae.W_enc.grad[:, dead].any()
    assert not sae.b_enc.grad[~dead].any()


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_auxiliary_terms_are_zero_when_nothing_is_dead(architecture: str):
    sae = make_training_sae(architecture, use_ghost_grads=architecture == "standard")
    alive = torch.zeros(D_SAE, dtype=torch.bool)
    losses = step(sae, activations(), dead=alive).losses
    name = "ghost_grad_loss" if architecture == "standard" else "auxiliary_reconstruction_loss"
    assert losses[name].item() == 0.0


def test_ghost_gradients_reach_dead_features_only():
    sae = make_training_sae("standard", use_ghost_grads=True)
    dead = torch.arange(D_SAE) % 4 == 0
    output = step(sae, activations(), dead=dead)
    output.losses["ghost_grad_loss"].backward()
    assert not sae.W_dec.grad[~dead].any()
    assert not sae.W_enc.grad[:, ~dead].any()
    assert sae.W_dec.grad[dead].any()
    sae.eval()
    assert "ghost_grad_loss" not in step(sae, activations(), dead=dead).losses


def test_rectangle_is_open_at_both_ends():
    x = torch.tensor([-0.5, -0.49, 0.0, 0.49, 0.5])
    assert rectangle(x).tolist() == [0, 1, 1, 1, 0]


def test_pseudo_gradients_by_hand():
    x = torch.tensor([[0.1, 0.9], [0.4, 2.0]], requires_grad=True)
    threshold = torch.tensor([0.3, 1.0], requires_grad=True)
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (Step.apply(x, threshold, 0.5) * weight).sum().backward()
    assert x.grad is None
    assert_close(threshold.grad, torch.tensor([-(1 + 3) / 0.5, -2 / 0.5]))
    threshold.grad = None
    out = JumpReLU.apply(x, threshold, 0.5)
    assert_close(out, torch.tensor([[0.0, 0.0], [0.4, 2.0]]))
    (out * weight).sum().backward()
    assert_close(x.grad, torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert_close(threshold.grad, torch.tensor([-0.3 / 0.5 * 4, -1.0 / 0.5 * 2]))


@pytest.mark.parametrize("mode", ["step", "tanh", "quadratic"])
@pytest.mark.parametrize("ste_to_input", [False, True])
def test_jumprelu_v6_losses_by_formula(mode: str, ste_to_input: bool):
    sae = make_v6(
        "jumprelu",
        jumprelu_sparsity_loss_mode=mode,
        jumprelu_ste_to_input=ste_to_input,
        jumprelu_bandwidth=0.3,
        pre_act_loss_coefficient=0.2,
        target_l0=6.0,
        dtype="float64",
    )
    assert sae.threshold.dtype == torch.float32
    sae.threshold.data[3] = -1.0
    x, dead = activations(dtype=torch.float64), torch.arange(D_SAE) % 2 == 0
    output = sae.training_forward_pass(TrainStepInput(x, {"l0": 0.5}, dead))
    assert sae.threshold[3] == 0
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    acts, norms = pre * (pre > sae.threshold), sae.W_dec.norm(dim=-1)
    l0 = (pre > sae.threshold).sum(-1).double()
    want = {
        "step": 0.5 * l0,
        "tanh": 0.5 * torch.tanh(4.0 * acts * norms).sum(-1),
        "quadratic": 0.5 * (2 / 6.0) * (l0 - 6.0) ** 2,
    }[mode].mean()
    assert_close(output.losses["l0_loss"], want)
    below = torch.relu(sae.threshold - pre) * norms
    assert_close(output.losses["pre_act_loss"], 0.2 * below[:, dead].sum(-1).mean())
    # away from the windows the pre-activations' gradient is exact; in them it has the extra term
    output.losses["l0_loss"].backward()
    reaches_input = sae.W_enc.grad is not None and bool(sae.W_enc.grad.any())
    assert reaches_input == (ste_to_input or mode == "tanh")


def test_jumprelu_v6_refuses_targets_out_of_reach():
    for target in (None, 0, D_SAE + 1):
        with pytest.raises(ValueError, match="target_l0"):
            JumpReLUTrainingSAEConfig(
                d_in=4, d_sae=D_SAE, jumprelu_sparsity_loss_mode="quadratic", target_l0=target
            )
    with pytest.raises(ValueError, match="allowed are step, tanh, quadratic"):
        JumpReLUTrainingSAEConfig(d_in=4, d_sae=8, jumprelu_sparsity_loss_mode="cube")


def test_threshold_is_that_of_jumprelu_only():
    sae = make_training_sae("jumprelu")
    assert next(iter(sae.state_dict())) == "log_threshold"
    assert_close(sae.threshold, sae.log_threshold.exp())
    assert isinstance(sae, JumpReLUTrainingSAE)
    with pytest.raises(ValueError, match="Only jumprelu"):
        _ = make_training_sae("standard").threshold


def test_thresholds_of_zero_stay_finite(tmp_path: Path):
    sae = make_training_sae("jumprelu")
    state = {"threshold": torch.tensor([0.0, -1.0, 0.5])}
    sae.process_state_dict_for_loading(state)
    assert torch.isfinite(state["log_threshold"]).all()


@every_architecture
def test_decoder_fold_of_training_saes(architecture: str):
    sae = make_training_sae(architecture)
    sae.cfg.rescale_acts_by_decoder_norm = True
    x = activations()
    want = sae(x)
    sae.fold_W_dec_norm()
    assert_close(sae(x), want, atol=1e-4)


@every_architecture
def test_noise_only_while_training_and_never_in_the_clean_pass(architecture: str):
    sae = make_training_sae(architecture, noise_scale=0.5)
    x = activations()
    noisy = not torch.equal(
        sae.encode_with_hidden_pre_fn(x)[1], sae.encode_with_hidden_pre_fn(x)[1]
    )
    assert noisy == (architecture != "gated")
    sae.eval()
    quiet = sae(x)
    assert torch.equal(sae(x), quiet)
    if architecture != "gated":
        sae.train()
        sae.use_error_term = True
        errors = []
        hook = [("hook_sae_error", lambda value, hook: errors.append(value))]
        sae.run_with_hooks(x, fwd_hooks=hook)
        assert_close(errors[0], x - quiet)


@pytest.mark.no_shape_checks
@every_architecture
def test_training_saes_copy_compile_and_fire_hooks(architecture: str):
    sae = make_training_sae(architecture)
    x = activations()
    step(sae, x).loss.backward()
    for twin in (copy.deepcopy(sae), pickle.loads(pickle.dumps(sae))):
        assert torch.equal(twin(x), sae(x))
    _, cache = sae.run_with_cache(x)
    assert "hook_sae_acts_pre" in cache
    assert "hook_sae_output" in cache
    compiled = torch.compile(sae.training_forward_pass, backend="eager")
    assert_close(compiled(x, 0.1).loss, step(sae, x, 0.1).loss)


def test_refused_combinations():
    with pytest.raises(ValueError, match="use_ghost_grads"):
        make_training_sae("topk", use_ghost_grads=True)
    cfg = TrainingSAEConfig.from_dict(flat_config_dict("gated"))
    with pytest.raises(ValueError, match="use_error_term"):
        TrainingSAE(cfg, use_error_term=True)
    assert TrainingSAE(TrainingSAEConfig.from_dict(flat_config_dict()), use_error_term=True)


def test_initial_values():
    sae = make_training_sae(normalize_sae_decoder=True)
    assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    sae = make_training_sae(decoder_orthogonal_init=True)
    assert_close(sae.W_dec.T @ sae.W_dec, torch.eye(D_IN))
    sae = make_training_sae(
        decoder_heuristic_init=True,
        decoder_heuristic_init_norm=0.3,
        init_encoder_as_decoder_transpose=True,
    )
    assert_close(sae.W_dec.norm(dim=-1), torch.full((D_SAE,), 0.3))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.is_contiguous()
    assert (sae.W_dec < 0).any()
    for norm in (0.1, 0.7):
        v6 = StandardTrainingSAE(
            StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, decoder_init_norm=norm)
        )
        assert_close(v6.W_dec.norm(dim=-1), torch.full((D_SAE,), norm))
        assert torch.equal(v6.W_enc, v6.W_dec.T)
    v6 = StandardTrainingSAE(
        StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, decoder_init_norm=None)
    )
    assert not torch.allclose(v6.W_enc, v6.W_dec.T)


def test_decoder_bias_initialisers(caplog: pytest.LogCaptureFixture):
    sae = make_training_sae()
    x = activations(10) + 3
    with caplog.at_level("DEBUG"):
        sae.initialize_b_dec_with_mean(x)
    assert_close(sae.b_dec, x.mean(0))
    assert "mean of 10 activations" in caplog.text
    assert "Median distance" in caplog.text
    origin = torch.ones(D_IN, dtype=torch.float64)
    sae.initialize_b_dec_with_precalculated(origin)
    origin.zero_()
    assert torch.equal(sae.b_dec, torch.ones(D_IN))


def test_parallel_gradient_is_removed():
    sae = make_training_sae(normalize_sae_decoder=True)
    with pytest.raises(AssertionError):
        sae.remove_gradient_parallel_to_decoder_directions()
    step(sae, activations()).loss.backward()
    assert (sae.W_dec.grad * sae.W_dec).sum(-1).abs().max() > 1e-3
    sae.remove_gradient_parallel_to_decoder_directions()
    assert (sae.W_dec.grad * sae.W_dec).sum(-1).abs().max() < 1e-5


def test_dense_batch_loss_by_formula():
    sae = make_training_sae(mse_loss_normalization="dense_batch")
    x = activations()
    output = step(sae, x)
    norm = (x - x.mean(0)).norm(dim=-1, keepdim=True) + 1e-6
    assert_close(output.losses["mse_loss"], ((output.sae_out - x) ** 2 / norm).sum(-1).mean())
    sae.cfg.mse_loss_normalization = None
    sae.mse_loss_fn = sae._get_mse_loss_fn()
    assert_close(step(sae, x).losses["mse_loss"], ((output.sae_out - x) ** 2).sum(-1).mean())


def test_coefficients_by_form():
    v5 = make_training_sae("jumprelu", l1_coefficient=3.0).get_coefficients()
    assert (v5["l0"].value, v5["l0"].warm_up_steps) == (3.0, 0)
    v6 = make_v6("jumprelu", l0_coefficient=2.0, l0_warm_up_steps=7).get_coefficients()
    assert (v6["l0"].value, v6["l0"].warm_up_steps) == (2.0, 7)
    v6 = make_v6("gated", l1_coefficient=2.0, l1_warm_up_steps=7).get_coefficients()
    assert (v6["l1"].value, v6["l1"].warm_up_steps) == (2.0, 7)
    assert make_v6("topk").get_coefficients() == {}


class EarlyTrainingSAE(TrainingSAE):
    """A user's subclass of the general class, without an architecture of its own."""

    def training_forward_pass(self, *args, **kwargs):
        output = super().training_forward_pass(*args, **kwargs)
        output.loss = output.loss * 2
        return output


@every_architecture
def test_subclasses_of_the_general_class_get_the_architecture(architecture: str):
    cfg = TrainingSAEConfig.from_dict(flat_config_dict(architecture, normalize_sae_decoder=False))
    torch.manual_seed(0)
    sae = EarlyTrainingSAE(cfg)
    torch.manual_seed(0)
    plain = TrainingSAE(cfg)
    assert isinstance(sae, EarlyTrainingSAE)
    assert isinstance(sae, type(plain))
    assert_close(step(sae, activations()).loss, step(plain, activations()).loss * 2)


def test_topk_k_is_checked():
    for k in (0, D_SAE + 1):
        with pytest.raises(ValueError, match=f"k is {k}"):
            TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=k)
    with pytest.raises(ValueError, match="k is 49"):
        make_training_sae("topk", activation_fn_kwargs={"k": 49})


def test_batchtopk_config_keywords_of_6x():
    cfg = BatchTopKTrainingSAEConfig(
        d_in=D_IN,
        d_sae=D_SAE,
        k=3,
        device="cpu",
        dtype="float32",
        rescale_acts_by_decoder_norm=False,
    )
    sae = BatchTopKTrainingSAE(cfg).eval()
    assert sae(activations()).shape == (6, D_IN)
    assert isinstance(TrainingSAE(cfg), BatchTopKTrainingSAE)
    assert isinstance(TrainingSAE(TopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)), TopKTrainingSAE)
