"""Transcoders, AbsTopK, matching pursuit and temporal SAEs: what they promise beyond the numbers.

That they compute what the original does is held by the reference folders and the synthetic
checkpoints under `tests/loading`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens.saes import (
    SAE,
    AbsTopKSAE,
    AbsTopKSAEConfig,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    SAEConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    TemporalSAE,
    TemporalSAEConfig,
    Transcoder,
    TranscoderConfig,
)
from sae_lens.saes.activation_fns import TopK
from sae_lens.saes.matching_pursuit import matching_pursuit

D, M, D_OUT = 8, 24, 6
HOOKS = {"hook_name": "blocks.1.hook_mlp_in", "model_name": "tiny"}

CONFIGS: dict[str, Any] = {
    "transcoder": TranscoderConfig(d_in=D, d_sae=M, d_out=D_OUT, metadata=HOOKS),
    "skip_transcoder": SkipTranscoderConfig(d_in=D, d_sae=M, d_out=D_OUT, metadata=HOOKS),
    "jumprelu_transcoder": JumpReLUTranscoderConfig(d_in=D, d_sae=M, d_out=D_OUT, metadata=HOOKS),
    "jumprelu_skip_transcoder": JumpReLUSkipTranscoderConfig(
        d_in=D, d_sae=M, d_out=D_OUT, metadata=HOOKS
    ),
    "abstopk": AbsTopKSAEConfig(d_in=D, d_sae=M, k=3, metadata=HOOKS),
    "matching_pursuit": MatchingPursuitSAEConfig(d_in=D, d_sae=M, metadata=HOOKS),
    "temporal": TemporalSAEConfig(
        d_in=D, d_sae=M, n_heads=2, bottleneck_factor=4, kval_topk=4, metadata=HOOKS
    ),
}
TRANSCODERS = [name for name in CONFIGS if "transcoder" in name]


def make(architecture: str) -> SAE:
    torch.manual_seed(0)
    sae = SAE(copy.deepcopy(CONFIGS[architecture]))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
            if name == "threshold":
                parameter.abs_()
        if architecture == "matching_pursuit":
            sae.W_dec /= sae.W_dec.norm(dim=-1, keepdim=True)
    return sae.eval()


def inputs() -> torch.Tensor:
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_saving_and_loading_keeps_class_config_and_numbers(
    architecture: str, tmp_path: Path
) -> None:
    sae = make(architecture)
    sae.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    sae.save_model(tmp_path)
    again = SAE.load_from_disk(tmp_path)
    assert type(again) is type(sae)
    assert again.cfg.to_dict() == sae.cfg.to_dict()
    assert again.cfg.metadata.hook_name_out == "blocks.1.hook_mlp_out"
    torch.testing.assert_close(again(inputs()), sae(inputs()))


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_copies_casts_and_hooks(architecture: str) -> None:
    sae = make(architecture)
    expected = sae(inputs())
    torch.testing.assert_close(copy.deepcopy(sae)(inputs()), expected)
    _, cache = sae.run_with_cache(inputs())
    assert cache["hook_sae_acts_post"].shape == (2, 5, M)
    assert cache["hook_sae_output"].shape == expected.shape
    torch.testing.assert_close(cache["hook_sae_input"], inputs())
    assert sae.to(torch.float64)(inputs()).dtype == torch.float64
    assert sae.cfg.dtype in ("torch.float64", "float64")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_their_configs_come_back_from_dicts(architecture: str) -> None:
    config = CONFIGS[architecture]
    again = SAEConfig.from_dict(config.to_dict())
    assert type(again) is type(config)
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_the_norm_factor_is_folded_exactly(architecture: str) -> None:
    sae, folded = make(architecture), make(architecture)
    folded.fold_activation_norm_scaling_factor(2.5)
    expected = sae(2.5 * inputs()) / 2.5
    if "skip" in architecture:  # the skip connection is linear: scaling cancels
        assert float(sae.W_skip.abs().sum()) > 0
    torch.testing.assert_close(folded(inputs()), expected, atol=1e-5, rtol=1e-4)


# -- transcoders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TRANSCODERS)
@torch.no_grad()
def test_folding_decoder_norms_keeps_the_output(architecture: str) -> None:
    sae = make(architecture)
    expected, features = sae(inputs()), sae.encode(inputs())
    norms = sae.W_dec.norm(dim=-1)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae(inputs()), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sae.encode(inputs()), features * norms, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(M))


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_the_output_has_its_own_width_and_bias(architecture: str) -> None:
    sae = make(architecture)
    assert sae(inputs()).shape == (2, 5, D_OUT)
    assert sae.b_dec.shape == (D_OUT,)
    assert sae.W_dec.shape == (M, D_OUT)


def test_a_transcoder_cannot_subtract_its_output_bias() -> None:
    with pytest.raises(ValueError, match="apply_b_dec_to_input must be given as False"):
        TranscoderConfig(d_in=D, d_sae=M, d_out=D_OUT, apply_b_dec_to_input=True)
    config = TranscoderConfig(d_in=D, d_sae=M, d_out=D_OUT).to_dict()
    del config["apply_b_dec_to_input"]
    assert SAEConfig.from_dict(config).apply_b_dec_to_input is False


def test_a_transcoder_has_no_error_term() -> None:
    with pytest.raises(ValueError, match="no error term"):
        Transcoder(CONFIGS["transcoder"], use_error_term=True)


@torch.no_grad()
def test_the_skip_connection_is_linear_in_the_input() -> None:
    sae = make("skip_transcoder")
    assert isinstance(sae, SkipTranscoder)
    without = make("skip_transcoder")
    without.W_skip.data.zero_()
    difference = sae(inputs()) - without(inputs())
    torch.testing.assert_close(difference, inputs() @ sae.W_skip.T, atol=1e-5, rtol=1e-4)


def test_jumprelu_transcoders_have_thresholds() -> None:
    sae = make("jumprelu_transcoder")
    assert isinstance(sae, JumpReLUTranscoder)
    sae.threshold.data.fill_(1e6)
    assert int(sae.encode(inputs()).count_nonzero()) == 0


# -- AbsTopK -------------------------------------------------------------------------------------


def test_abstopk_keeps_the_largest_of_both_signs() -> None:
    sae = make("abstopk")
    assert isinstance(sae, AbsTopKSAE) and isinstance(sae.activation_fn, TopK)
    with torch.no_grad():
        hidden_pre = (inputs() - sae.b_dec) @ sae.W_enc + sae.b_enc
        features = sae.encode(inputs())
    assert (features.count_nonzero(dim=-1) == 3).all()
    assert bool((features < 0).any()) and bool((features > 0).any())
    kept = features != 0
    torch.testing.assert_close(features[kept], hidden_pre[kept])
    smallest_kept = features.abs().where(kept, torch.inf).amin(-1)
    assert bool((hidden_pre.abs().where(~kept, 0.0).amax(-1) <= smallest_kept).all())


# -- matching pursuit ----------------------------------------------------------------------------


def test_matching_pursuit_by_hand() -> None:
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    x = torch.tensor([[3.0, 0.5], [0.0, 0.0], [-1.0, -2.0]])
    features = matching_pursuit(x, W_dec, 0.01, 5, True)
    # 3 along the first axis, what is left is 0.5 along the second; nothing fits the last token.
    expected = torch.tensor([[3.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(
        matching_pursuit(x, W_dec, 0.6, 5, True)[0], expected[0] * 0 + torch.tensor([3.0, 0, 0])
    )
    torch.testing.assert_close(matching_pursuit(x, W_dec, 0.01, 1, True)[0, 1], torch.tensor(0.0))


@torch.no_grad()
def test_matching_pursuit_explains_more_with_more_features() -> None:
    sae = make("matching_pursuit")
    assert isinstance(sae, MatchingPursuitSAE)
    errors = []
    for n in (1, 3, 6):
        sae.cfg.max_iterations = n
        errors.append(float((sae(inputs()) - inputs()).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


@pytest.mark.parametrize("architecture", ["matching_pursuit", "temporal"])
def test_norms_that_matter_are_not_folded(architecture: str) -> None:
    with pytest.raises(NotImplementedError, match="cannot be folded"):
        make(architecture).fold_W_dec_norm()


# -- temporal ------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_temporal_sae_looks_back_and_not_ahead() -> None:
    sae = make("temporal")
    assert isinstance(sae, TemporalSAE)
    x = inputs()
    changed = x.clone()
    changed[:, 3] += 1.0
    difference = (sae(x) - sae(changed)).abs().amax(-1).amax(0)
    assert bool((difference[:3] < 1e-6).all())
    assert bool((difference[3:] > 1e-6).all())


def test_a_temporal_sae_needs_positions() -> None:
    with pytest.raises(ValueError, match=r"\[batch, pos, d_in\], not \[5, 8\]"):
        make("temporal").encode(inputs()[0])


@torch.no_grad()
def test_temporal_decoding_alone_warns() -> None:
    sae = make("temporal")
    with pytest.warns(UserWarning, match="leaves out what the context predicts"):
        sae.decode(sae.encode(inputs()))


def test_temporal_options_are_checked() -> None:
    with pytest.raises(ValueError, match="multiples of n_heads"):
        SAE(TemporalSAEConfig(d_in=D, d_sae=M, n_heads=5, bottleneck_factor=4))
    with pytest.raises(ValueError, match="allowed are topk and relu"):
        SAE(TemporalSAEConfig(d_in=D, d_sae=M, sae_diff_type="odd"))  # type: ignore[arg-type]


@torch.no_grad()
def test_the_error_term_of_a_temporal_sae() -> None:
    sae = make("temporal")
    sae.use_error_term = True
    torch.testing.assert_close(sae(inputs()), inputs(), atol=1e-5, rtol=1e-4)
    ablated = sae.run_with_hooks(
        inputs(), fwd_hooks=[("hook_sae_acts_post", lambda codes, hook: codes * 0)]
    )
    assert not torch.allclose(ablated, inputs(), atol=1e-3)
