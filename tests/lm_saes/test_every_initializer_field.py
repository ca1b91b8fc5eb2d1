"""Every field of `InitializerConfig` does what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.lm_saes import Initializer, InitializerConfig, SAEConfig
from sae_lens.saes import TrainingSAE
from sae_lens.training.geometric_median import compute_geometric_median
from tests.helpers import D_IN, activations, assert_close, tiny_model
from tests.lm_saes.helpers import HOOK, Recorder

OUT = "blocks.1.hook_mlp_out"


def stream() -> list[dict[str, Tensor]]:
    return [{HOOK: activations(50, seed=i) + 1, OUT: activations(50, seed=i + 9)} for i in range(8)]


def made(sae: dict[str, Any] | None = None, model: Any = None, **fields: Any) -> TrainingSAE:
    torch.manual_seed(0)
    cfg = SAEConfig(
        **{"hook_point_in": HOOK, "d_model": D_IN, "expansion_factor": 3, **(sae or {})}
    )
    initializer = Initializer(InitializerConfig(**fields))
    return initializer.initialize_sae_from_config(cfg, stream(), wandb_logger=LOG, model=model)


LOG = Recorder()
RAW = {"norm_activation": "inference"}


def _bias() -> None:
    assert not made(RAW).b_dec.any()
    want = compute_geometric_median(stream()[0][HOOK]).median
    assert_close(made(RAW, bias_init_method="geometric_median").b_dec, want, atol=1e-4)


def _decoder_bound() -> None:
    assert 0.28 < made(decoder_uniform_bound=0.3).W_dec.abs().max() <= 0.3
    assert 0.95 < made().W_dec.abs().max() <= 1.0


def _encoder_bound() -> None:
    free = {"init_encoder_with_decoder_transpose": False}
    assert 0.28 < made(encoder_uniform_bound=0.3, **free).W_enc.abs().max() <= 0.3


def _transpose() -> None:
    sae = made()
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    sae = made(init_encoder_with_decoder_transpose=False)
    assert (sae.W_enc - sae.W_dec.T).abs().max() > 0.5


def _transpose_factor() -> None:
    sae = made(init_encoder_with_decoder_transpose_factor=0.25)
    assert torch.equal(sae.W_enc, 0.25 * sae.W_dec.T)


def _threshold() -> None:
    jumprelu = {"act_fn": "jumprelu"}
    for given, want in ((None, math.log(0.001)), (-1.5, -1.5)):
        sae = made(jumprelu, init_log_jumprelu_threshold_value=given)
        assert_close(sae.log_threshold, torch.full_like(sae.log_threshold, want))


def _grid_search() -> None:
    sae = made(grid_search_init_norm=True)
    norms = sae.W_dec.norm(dim=-1)
    assert_close(norms, norms[:1].expand(len(norms)))
    logged = LOG.logged[-1][1]["best_norm_fine_grained"]
    assert norms[0].item() == pytest.approx(logged, rel=1e-5)
    assert made().W_dec.norm(dim=-1).std() > 0.1


def _subspace() -> None:
    for dimensions in (2, 5):
        sae = made(
            initialize_W_D_with_active_subspace=True,
            d_active_subspace=dimensions,
            init_encoder_with_decoder_transpose=False,
        )
        assert torch.linalg.matrix_rank(sae.W_dec) == dimensions
    assert torch.linalg.matrix_rank(made().W_dec) == D_IN


def _lorsa() -> None:
    with pytest.raises(NotImplementedError):
        made(initialize_lorsa_with_mhsa=True)
    made(initialize_lorsa_with_mhsa=False)


def _mlp() -> None:
    model = tiny_model()
    for layer in (0, 1):
        sae = made(
            {**RAW, "hook_point_out": OUT},
            model,
            initialize_tc_with_mlp=True,
            model_layer=layer,
            init_encoder_with_decoder_transpose=False,
        )
        W_out = model.blocks[layer].mlp.W_out
        assert torch.equal(sae.W_dec, W_out[torch.arange(len(sae.W_dec)) % len(W_out)])
    with pytest.raises(ValueError, match="needs the model"):
        made({**RAW, "hook_point_out": OUT}, initialize_tc_with_mlp=True, model_layer=0)


def _encoder_bias() -> None:
    sae = made(RAW, init_encoder_bias_with_mean_hidden_pre=True)
    hidden = stream()[0][HOOK] @ sae.W_enc + sae.b_enc
    assert_close(hidden.mean(dim=0), torch.zeros(len(sae.b_enc)), atol=1e-5)
    assert not made(RAW).b_enc.any()


CHECKS: dict[str, Callable[[], None]] = {
    "bias_init_method": _bias,
    "decoder_uniform_bound": _decoder_bound,
    "encoder_uniform_bound": _encoder_bound,
    "init_encoder_with_decoder_transpose": _transpose,
    "init_encoder_with_decoder_transpose_factor": _transpose_factor,
    "init_log_jumprelu_threshold_value": _threshold,
    "grid_search_init_norm": _grid_search,
    "initialize_W_D_with_active_subspace": _subspace,
    "d_active_subspace": _subspace,
    "initialize_lorsa_with_mhsa": _lorsa,
    "initialize_tc_with_mlp": _mlp,
    "model_layer": _mlp,
    "init_encoder_bias_with_mean_hidden_pre": _encoder_bias,
}


def test_no_field_is_left_out():
    assert CHECKS.keys() == InitializerConfig.model_fields.keys()


@pytest.mark.parametrize("field", CHECKS)
def test_a_field_does_what_it_says(field: str):
    CHECKS[field]()
