"""`Initializer`: rules, searches, and what it needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sae_lens.lm_saes import Initializer, InitializerConfig, SAEAdapter, SAEConfig
from sae_lens.saes import TrainingSAE
from sae_lens.training.geometric_median import compute_geometric_median
from tests.helpers import D_IN, D_SAE, activations, assert_close
from tests.lm_saes.helpers import HOOK, Recorder, batches, tiny_sae


def sae_config(**fields: Any) -> SAEConfig:
    return SAEConfig(hook_point_in=HOOK, d_model=D_IN, expansion_factor=3, **fields)


def test_uniform_weights_and_the_transpose():
    cfg = InitializerConfig(
        decoder_uniform_bound=0.5,
        encoder_uniform_bound=0.1,
        init_encoder_with_decoder_transpose=False,
    )
    sae = tiny_sae()
    assert Initializer(cfg).initialize_parameters(sae) is sae
    assert 0.45 < sae.W_dec.abs().max() <= 0.5
    assert 0.09 < sae.W_enc.abs().max() <= 0.1
    assert not sae.b_enc.any()
    cfg = InitializerConfig(init_encoder_with_decoder_transpose_factor=2.0)
    sae = Initializer(cfg).initialize_parameters(tiny_sae())
    assert torch.equal(sae.W_enc, 2 * sae.W_dec.T)


@pytest.mark.parametrize(("given", "value"), [(None, 0.001), (-1.0, math.exp(-1.0))])
def test_thresholds(given: float | None, value: float):
    init = Initializer(InitializerConfig(init_log_jumprelu_threshold_value=given))
    sae = init.initialize_parameters(
        TrainingSAE(sae_config(act_fn="jumprelu").to_training_config())
    )
    assert_close(sae.log_threshold, torch.full((D_SAE,), math.log(value)))
    sae = init.initialize_parameters(tiny_sae("jumprelu"))
    assert_close(sae.threshold, torch.full((D_SAE,), value))


def test_the_decoder_bias_is_the_geometric_median_of_normalised_labels():
    batch = {HOOK: activations(50) + torch.arange(D_IN)}
    sae = tiny_sae(normalize_activations="expected_average_only_in")
    SAEAdapter(sae).set_dataset_average_activation_norm({HOOK: 3.0})
    cfg = InitializerConfig(bias_init_method="geometric_median")
    Initializer(cfg).initialization_search(sae, batch)
    want = compute_geometric_median(batch[HOOK] * D_IN**0.5 / 3.0).median
    assert_close(sae.b_dec, want, atol=1e-4)
    assert (want - (batch[HOOK] * D_IN**0.5 / 3.0).mean(0)).abs().max() > 1e-3


def test_the_encoder_bias_centres_pre_activations():
    batch = {HOOK: activations(50) + 1}
    sae = tiny_sae()
    cfg = InitializerConfig(init_encoder_bias_with_mean_hidden_pre=True)
    Initializer(cfg).initialization_search(sae, batch)
    hidden = batch[HOOK] @ sae.W_enc + sae.b_enc
    assert_close(hidden.mean(0), torch.zeros(D_SAE), atol=1e-5)


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_the_searched_norm_reconstructs_best(architecture: str):
    batch, log = {HOOK: activations(50)}, Recorder()
    init = Initializer(InitializerConfig(grid_search_init_norm=True))
    sae = init.initialize_parameters(
        tiny_sae(architecture, rescale_acts_by_decoder_norm=False)
        if architecture == "topk"
        else tiny_sae()
    )
    init.initialization_search(sae, batch, wandb_logger=log)
    best = log.logged[0][1]["best_norm_fine_grained"]
    assert_close(sae.W_dec.norm(dim=-1), torch.full((D_SAE,), best))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    adapter = SAEAdapter(sae.eval())

    @torch.no_grad()
    def error(norm: float) -> float:
        adapter.set_decoder_norm(norm)
        sae.W_enc.copy_(sae.W_dec.T)
        return adapter.compute_loss(batch).l_rec.item()

    assert all(error(best) <= error(best + delta) for delta in (-0.05, 0.05, 0.5))


def test_decoder_rows_in_the_active_subspace():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D_IN, 3))[0]
    batch = {HOOK: torch.randn(40, 3) @ basis.T + 5}
    cfg = InitializerConfig(initialize_W_D_with_active_subspace=True, d_active_subspace=3)
    sae = Initializer(cfg).initialize_sae_from_config(
        sae_config(norm_activation="inference"), [batch]
    )
    assert_close(sae.W_dec @ basis @ basis.T, sae.W_dec.detach(), atol=1e-4)
    assert torch.linalg.matrix_rank(sae.W_dec) == 3
    cfg = InitializerConfig(initialize_W_D_with_active_subspace=True, d_active_subspace=17)
    with pytest.raises(ValueError, match="span at most 16"):
        Initializer(cfg).initialize_sae_from_config(sae_config(), [batch])


def test_the_norm_is_measured_over_eight_batches_or_given():
    data = batches(10, scale=2.0)
    init = Initializer(InitializerConfig())
    sae = init.initialize_sae_from_config(sae_config(), iter(data))
    norm = torch.cat([b[HOOK] for b in data[:8]]).norm(dim=-1).mean()
    assert SAEAdapter(sae).scaling_factor == pytest.approx(float(D_IN**0.5 / norm), rel=1e-5)
    scaled = SAEAdapter(sae).normalize_activations(data[0])
    assert_close(scaled[HOOK], data[0][HOOK] * D_IN**0.5 / norm)
    assert_close(SAEAdapter(sae).denormalize_activations(scaled)[HOOK], data[0][HOOK])
    sae = init.initialize_sae_from_config(sae_config(), data, activation_norm={HOOK: 8.0})
    assert SAEAdapter(sae).scaling_factor == pytest.approx(0.5)


def test_training_configs_of_this_library_serve_as_well():
    cfg = tiny_sae("topk").cfg
    sae = Initializer(InitializerConfig()).initialize_sae_from_config(cfg, batches(1))
    assert isinstance(sae, TrainingSAE)
    assert sae.cfg.architecture == "topk"


def test_what_is_needed_is_asked_for():
    init = Initializer(InitializerConfig())
    with pytest.raises(ValueError, match="needs an activation_stream"):
        init.initialize_sae_from_config(sae_config())
    with pytest.raises(ValueError, match="is empty"):
        init.initialize_sae_from_config(sae_config(), [])
    with pytest.raises(NotImplementedError, match="device_mesh at None"):
        init.initialize_sae_from_config(sae_config(), batches(1), device_mesh=object())
    init = Initializer(InitializerConfig(initialize_tc_with_mlp=True, model_layer=0))
    with pytest.raises(ValueError, match="is for transcoders"):
        init.initialize_sae_from_config(sae_config(), batches(1))
