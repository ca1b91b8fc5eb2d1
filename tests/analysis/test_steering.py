"""Steering adds strength times direction at the hook, and says when that would be undone."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from sae_lens.analysis.hooked_sae_transformer import HookedSAETransformer
from sae_lens.analysis.steering import (
    feature_direction,
    steer,
    steered_generate,
    steered_logits,
    steering_hook,
)
from tests.helpers import make_sae, tiny_model

RESID = "blocks.1.hook_resid_pre"
Z = "blocks.1.attn.hook_z"
TOKENS = torch.arange(16).reshape(2, 8)


@pytest.fixture
def model():
    plain = tiny_model()
    model = HookedSAETransformer(plain.cfg).eval()
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        yield model


def logits_with(model, hook_name, change):
    return model.run_with_hooks(TOKENS, fwd_hooks=[(hook_name, lambda x, hook: change(x))])


def test_direction_is_the_decoder_row():
    sae = make_sae()
    assert torch.equal(feature_direction(sae, 3), sae.W_dec[3])
    assert feature_direction(sae, 3, normalize=True).norm().item() == pytest.approx(1.0)
    assert not feature_direction(sae, 3).requires_grad
    for feature in (-1, 48):
        with pytest.raises(ValueError, match=f"no feature {feature}.*48"):
            feature_direction(sae, feature)


def test_logits_while_steering(model):
    sae = make_sae(hook_name=RESID)
    before = model(TOKENS)
    steered = steered_logits(model, TOKENS, sae, 3, 2.5)
    expected = logits_with(model, RESID, lambda x: x + 2.5 * sae.W_dec[3])
    torch.testing.assert_close(steered, expected)
    assert not torch.allclose(steered, before)
    torch.testing.assert_close(steered_logits(model, TOKENS, sae, 3, 0.0), before)
    torch.testing.assert_close(model(TOKENS), before)


def test_only_the_given_positions_are_steered(model):
    sae = make_sae(hook_name=RESID)
    _, cache = model.run_with_cache(TOKENS)
    name, hook = steering_hook(model, sae, 3, 1.0, normalize=True, positions=[0, -1])
    assert name == RESID
    change = hook(cache[RESID], None) - cache[RESID]
    unit = sae.W_dec[3] / sae.W_dec[3].norm()
    torch.testing.assert_close(change[:, 0], unit.expand(2, -1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(change[:, -1], unit.expand(2, -1), atol=1e-5, rtol=1e-4)
    assert change[:, 1:-1].abs().max() == 0


def test_heads_are_flattened_or_picked(model):
    flat = make_sae(hook_name=Z)
    expected = logits_with(model, Z, lambda z: z + (3 * flat.W_dec[5]).unflatten(-1, (2, 8)))
    torch.testing.assert_close(steered_logits(model, TOKENS, flat, 5, 3.0), expected)

    one = make_sae(hook_name=Z, hook_head_index=1, d_in=8)

    def add_to_head(z):
        z = z.clone()
        z[:, :, 1] += 3 * one.W_dec[5]
        return z

    expected = logits_with(model, Z, add_to_head)
    torch.testing.assert_close(steered_logits(model, TOKENS, one, 5, 3.0), expected)


def test_generation_is_steered_at_every_new_token(model):
    # generating asks for a tokenizer, but only for its settings
    model.tokenizer = SimpleNamespace(eos_token_id=1, padding_side="right", pad_token_id=1)
    sae = make_sae(hook_name=RESID)
    settings = {
        "max_new_tokens": 5, "do_sample": False, "verbose": False, "stop_at_eos": False,
        "return_type": "tokens",
    }  # fmt: skip
    favourite = 7
    direction = model.W_U[:, favourite] - model.W_U.mean(dim=1)
    sae.W_dec.data[0] = direction / direction.norm()
    out = steered_generate(model, TOKENS[:1], sae, 0, 1000.0, **settings)
    assert out[0, 8:].tolist() == [favourite] * 5
    plain = model.generate(TOKENS[:1], **settings)
    assert plain[0, 8:].tolist() != [favourite] * 5


def test_an_attached_sae_is_steered_at_its_output(model):
    sae = make_sae(hook_name=RESID)
    reconstruct = logits_with(model, RESID, lambda x: sae(x) + 2 * sae.W_dec[3])
    with model.saes(sae), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(steered_logits(model, TOKENS, sae, 3, 2.0), reconstruct)


@pytest.mark.parametrize("hook_name", [RESID, Z])
def test_an_error_term_is_warned_of_and_does_not_cancel(model, hook_name):
    sae = make_sae(hook_name=hook_name)
    expected = logits_with(model, hook_name, lambda x: x + (2 * sae.W_dec[3]).reshape(x.shape[2:]))
    with model.saes(sae, use_error_term=True), pytest.warns(UserWarning, match="error term"):
        steered = steered_logits(model, TOKENS, sae, 3, 2.0)
    torch.testing.assert_close(steered, expected, atol=1e-5, rtol=1e-4)


def test_an_attached_sae_of_one_head_is_steered_at_its_output(model):
    sae = make_sae(hook_name=Z, hook_head_index=1, d_in=8)
    expected = steered_logits(model, TOKENS, sae, 5, 3.0)
    with model.saes(sae, use_error_term=True), pytest.warns(UserWarning, match="error term"):
        steered = steered_logits(model, TOKENS, sae, 5, 3.0)
    torch.testing.assert_close(steered, expected, atol=1e-5, rtol=1e-4)


def test_nothing_stays_after_an_exception(model):
    sae = make_sae(hook_name=RESID)
    before = model(TOKENS)
    with pytest.raises(RuntimeError, match="boom"), steer(model, sae, 3, 5.0):
        assert not torch.allclose(model(TOKENS), before)
        raise RuntimeError("boom")
    torch.testing.assert_close(model(TOKENS), before)


def test_a_missing_hook_is_named(model):
    with pytest.raises(ValueError, match=r"blocks\.9"):
        steering_hook(model, make_sae(hook_name="blocks.9.hook_resid_pre"), 0, 1.0)
