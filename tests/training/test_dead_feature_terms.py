"""Aux-k and ghost gradients for every architecture, and who counts as dead."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_lens.registry import get_sae_training_class
from sae_lens.saes import TrainingSAE, TrainStepInput
from sae_lens.saes.losses import ghost_out_loss
from sae_lens.training.dead_feature_terms import AuxK, DeadFeatureTerms
from sae_lens.training.features import TrainingFeatures
from sae_lens.training.statistics import FiringStatistics
from tests.helpers import D_IN, D_SAE, activations, assert_close, randomize
from tests.training.runs_on_batches import make_sae, recorded, trainer

DEAD = torch.arange(D_SAE) % 3 == 0
D_OUT = 12
WITHOUT_OWN_TERM: dict[str, dict[str, Any]] = {
    "standard": {},
    "gated": {},
    "jumprelu": {},
    "topk": {"k": 4, "aux_loss_coefficient": 0.0},
    "batchtopk": {"k": 4, "aux_loss_coefficient": 0.0},
    "transcoder": {"d_out": D_OUT},
    "jumprelu_skip_transcoder": {"d_out": D_OUT},
}
with_each_form = pytest.mark.parametrize("kernels", ["dense", "sparse"])
with_each_architecture = pytest.mark.parametrize("architecture", WITHOUT_OWN_TERM)


def make(architecture: str, **fields: Any) -> TrainingSAE:
    sae_class, config_class = get_sae_training_class(architecture)
    torch.manual_seed(0)
    sae = sae_class(
        config_class(
            d_in=D_IN,
            d_sae=D_SAE,
            dtype="float64",
            **{**WITHOUT_OWN_TERM.get(architecture, {}), **fields},
        )
    )
    randomize(sae)
    return sae


def batch_of(sae: TrainingSAE) -> torch.Tensor:
    return activations(20, D_IN + (getattr(sae.cfg, "d_out", None) or 0), dtype=torch.float64)


def dead_hidden(sae: TrainingSAE, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    centred = x - sae.b_dec if sae.cfg.apply_b_dec_to_input else x
    bias = sae.b_gate if hasattr(sae, "b_gate") else sae.b_enc
    return centred @ sae.W_enc[:, dead] + bias[dead]


@with_each_form
@pytest.mark.parametrize(
    ("architecture", "normalization"),
    [(name, "none") for name in WITHOUT_OWN_TERM]
    + [(name, "layer_norm") for name in WITHOUT_OWN_TERM if "transcoder" not in name],
)
def test_aux_k_has_the_exact_gradient_for_dead_features_and_none_for_others(
    architecture: str, kernels: Any, normalization: str
):
    sae = make(architecture, normalize_activations=normalization)
    sae.sparse_kernels = kernels
    batch = batch_of(sae)
    terms = DeadFeatureTerms(sae, AuxK(0.5, k=5), ghost_gradients=False)
    output = sae.training_forward_pass(
        TrainStepInput(batch, dict.fromkeys(sae.get_coefficients(), 0.1), DEAD, terms=terms)
    )
    dead = DEAD.nonzero().squeeze(1)
    x = batch[:, :D_IN]
    scale = torch.ones(len(x), 1, dtype=x.dtype)
    if normalization == "layer_norm":
        scale = x.std(dim=-1, keepdim=True)
        x = (x - x.mean(dim=-1, keepdim=True)) / (scale + 1e-5)
    hidden = dead_hidden(sae, x, dead)
    # where features are ranked for the loss by their decoder norm, so are these
    ranks_by_norm = sae.cfg.scale_sparsity_penalty_by_decoder_norm or getattr(
        sae, "rescales_acts", False
    )
    norms = sae.W_dec[dead].norm(dim=-1) if ranks_by_norm else torch.ones(len(dead))
    rank = (hidden * norms).detach()
    kept = rank >= rank.topk(5, dim=-1).values[:, -1:]
    recons = (torch.relu(hidden) * kept) @ sae.W_dec[dead] * scale
    residual = (output.sae_in - output.sae_out).detach()
    want = 0.5 * (residual - recons).pow(2).sum(-1).mean()
    assert_close(output.losses["auxk_loss"], want)
    names = ["W_enc", "W_dec", "b_gate" if hasattr(sae, "b_gate") else "b_enc"]
    parameters = [getattr(sae, name) for name in names]
    exact = torch.autograd.grad(want, parameters)
    got = torch.autograd.grad(output.losses["auxk_loss"], parameters, retain_graph=True)
    for name, mine, theirs in zip(names, got, exact, strict=True):
        assert_close(mine, theirs)
        by_feature = mine.T if name == "W_enc" else mine
        assert by_feature[DEAD].any()
        assert not by_feature[~DEAD].any()
    if not sae.cfg.apply_b_dec_to_input:
        (unused,) = torch.autograd.grad(
            output.losses["auxk_loss"], [sae.b_dec], allow_unused=True, retain_graph=True
        )
        assert unused is None or not unused.any()
    assert_close(output.loss, torch.stack(list(output.losses.values())).sum())


@with_each_form
@with_each_architecture
def test_ghost_gradients_reach_dead_features_alone(architecture: str, kernels: Any):
    sae = make(architecture)
    sae.sparse_kernels = kernels
    batch = batch_of(sae)
    terms = DeadFeatureTerms(sae, None, ghost_gradients=True)
    coefficients = dict.fromkeys(sae.get_coefficients(), 0.1)
    output = sae.training_forward_pass(TrainStepInput(batch, coefficients, DEAD, terms=terms))
    dead = DEAD.nonzero().squeeze(1)
    ghosts = torch.exp(dead_hidden(sae, batch[:, :D_IN], dead)) @ sae.W_dec[dead]
    per_item = (output.sae_in - output.sae_out).pow(2)
    want = ghost_out_loss(ghosts, output.sae_in, output.sae_out, per_item, sae.mse_loss_fn)
    assert_close(output.losses["ghost_grad_loss"], want)
    (gradient,) = torch.autograd.grad(output.losses["ghost_grad_loss"], [sae.W_enc])
    assert gradient[:, DEAD].any()
    assert not gradient[:, ~DEAD].any()


@with_each_form
@with_each_architecture
def test_without_dead_features_both_terms_are_zero(architecture: str, kernels: Any):
    sae = make(architecture)
    sae.sparse_kernels = kernels
    terms = DeadFeatureTerms(sae, AuxK(), ghost_gradients=True)
    coefficients = dict.fromkeys(sae.get_coefficients(), 0.1)
    for dead in (None, torch.zeros_like(DEAD)):
        step = TrainStepInput(batch_of(sae), coefficients, dead, terms=terms)
        output = sae.training_forward_pass(step)
        assert output.losses["auxk_loss"] == output.losses["ghost_grad_loss"] == 0


@pytest.mark.parametrize("features", [{"aux_k": {"coefficient": 1.0}}, {"ghost_gradients": True}])
@with_each_architecture
def test_dead_features_learn_in_a_run(architecture: str, features: dict[str, Any]):
    config = get_sae_training_class(architecture).config_class
    sae = make_sae(config, **WITHOUT_OWN_TERM[architecture])
    bias = sae.b_gate if hasattr(sae, "b_gate") else sae.b_enc
    with torch.no_grad():
        bias[:10] = -0.2 if features.get("aux_k") else -3.0
    before = sae.W_enc[:, :10].detach().clone()
    first = bias[:10].detach().clone()
    run = trainer(sae, features, n_steps=20, dead_feature_window=0)
    name = "auxk_loss" if "aux_k" in features else "ghost_grad_loss"
    seen = recorded(run, lambda output: output.losses[name].item())
    assert seen[0] == 0  # nothing counts as dead before the first step
    assert max(seen) > 0
    assert (sae.W_enc[:, :10] - before).norm() > 1e-2
    assert (bias[:10] != first).all()


def test_dead_by_tokens_or_by_steps():
    counted = FiringStatistics(3, "cpu", counts_silent_tokens=True)
    acts = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    counted.update(acts)
    counted.update(torch.tensor([[0.0, 2.0, 0.0]]))
    assert counted.tokens_since_fired.tolist() == [1, 0, 3]
    assert counted.silent_for_tokens(3).tolist() == [False, False, True]
    assert counted.silent_for_tokens(1).tolist() == [True, False, True]
    assert counted.silent_for_more_than(1).tolist() == [False, False, True]
    again = FiringStatistics(3, "cpu", counts_silent_tokens=True)
    again.load_state_dict(counted.state_dict())
    assert again.tokens_since_fired.tolist() == [1, 0, 3]
    with pytest.raises(ValueError, match="not counted"):
        FiringStatistics(3, "cpu").silent_for_tokens(3)


def test_a_run_counts_silence_in_tokens_when_asked():
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc[:10] = -100
    run = trainer(sae, TrainingFeatures(dead_after_tokens=33), n_steps=3)  # of 16 tokens each
    seen = recorded(run, lambda output: int(run.dead_neurons[:10].sum()))
    assert seen == [0, 0, 10]
