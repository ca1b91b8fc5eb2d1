"""The calls that an adapter gives, and the values of what is logged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.lm_saes import SAEAdapter, SAEConfig, Trainer
from sae_lens.saes import TrainingSAE
from tests.helpers import D_IN, D_SAE, activations, assert_close
from tests.lm_saes.helpers import HOOK, N_TOKENS, Recorder, batches, config, tiny_sae


def test_encoding_and_decoding_are_those_of_the_sae():
    sae = tiny_sae()
    adapter, x = SAEAdapter(sae), activations(7)
    encoding = adapter.encode(x)
    assert_close(encoding.hidden_pre, (x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert_close(encoding.feature_acts, torch.relu(encoding.hidden_pre))
    assert_close(adapter.decode(encoding.feature_acts), sae(x))


def test_k_can_be_set_where_there_is_one():
    adapter, x = SAEAdapter(tiny_sae("topk")), activations(7)
    assert adapter.current_k == 4
    adapter.set_current_k(9)
    assert adapter.current_k == 9
    assert ((adapter.encode(x).feature_acts > 0).sum(dim=-1) == 9).all()
    other = SAEAdapter(tiny_sae())
    assert other.current_k is None
    with pytest.raises(ValueError, match="has no k"):
        other.set_current_k(3)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_parameters_come_in_two_groups(architecture: str):
    sae = tiny_sae(architecture)
    groups = SAEAdapter(sae).parameter_groups()
    names = {id(value): name for name, value in sae.named_parameters()}
    found = {key: {names[id(value)] for value in group} for key, group in groups.items()}
    thresholds = {"threshold"} if architecture == "jumprelu" else set()
    assert found == {"jumprelu": thresholds, "others": set(names.values()) - thresholds}


def test_norms_are_set_and_reported():
    sae = tiny_sae("jumprelu")
    adapter = SAEAdapter(sae)
    adapter.set_decoder_norm(0.7)
    with torch.no_grad():
        sae.b_dec.fill_(2.0)
    values = adapter.log_statistics()
    assert values == {
        "metrics/encoder_norm": pytest.approx(sae.W_enc.norm(dim=0).mean().item()),
        "metrics/decoder_norm": pytest.approx(0.7),
        "metrics/decoder_bias_norm": pytest.approx(2 * D_IN**0.5),
        "metrics/mean_jumprelu_threshold": pytest.approx(0.05),
    }


def test_the_parts_of_the_loss_add_up():
    adapter = SAEAdapter(tiny_sae("jumprelu"))
    parts = adapter.compute_loss(
        batches(1)[0],
        l1_coefficient=0.3,
        lp_coefficient=0.2,
        auxk_coefficient=0.1,
        sparsity_loss_type="tanh",
        is_dead=torch.arange(D_SAE) < 9,
    )
    terms = [parts.l_rec, parts.l_s, parts.l_p, parts.l_aux]
    assert all(term is not None and term.item() > 0 for term in terms)
    assert_close(parts.loss, sum(terms, torch.zeros(())))  # type: ignore[arg-type]
    nothing = adapter.compute_loss(batches(1)[0])
    assert (nothing.l_s, nothing.l_p, nothing.l_aux) == (None, None, None)
    assert torch.equal(nothing.loss, nothing.l_rec)


def test_scaling_is_by_the_root_of_the_width_over_the_mean_norm():
    cfg = SAEConfig(hook_point_in=HOOK, d_model=D_IN, expansion_factor=2)
    adapter = SAEAdapter(TrainingSAE(cfg.to_training_config()))
    adapter.set_dataset_average_activation_norm({HOOK: 8.0})
    batch = batches(1)[0]
    scaled = adapter.normalize_activations(batch)
    assert_close(scaled[HOOK], batch[HOOK] * D_IN**0.5 / 8.0)
    assert_close(adapter.denormalize_activations(scaled)[HOOK], batch[HOOK])


def _logged(n_steps: int, log_frequency: int, **fields: Any) -> tuple[dict[str, Any], list[Tensor]]:
    """What is logged of a training that changes nothing, and the activations it saw."""
    log, data = Recorder(), batches(n_steps)
    cfg = config(n_steps, lr=0.0, log_frequency=log_frequency, **fields)
    Trainer(cfg).fit(tiny_sae(), data, wandb_logger=log)
    return log.logged[-1][1], [batch[HOOK] for batch in data]


def test_values_of_features_and_errors():
    values, xs = _logged(3, 3)
    x, sae = torch.cat(xs), tiny_sae()
    with torch.no_grad():
        features, recons = sae.encode(x), sae(x)
    fires = features > 0
    frequency = fires.float().mean(dim=0)
    for name, limit in (("above_1e-1", 1e-1), ("above_1e-2", 1e-2)):
        assert values[f"sparsity/{name}"] == int((frequency > limit).sum())
    for name, limit in (("below_1e-5", 1e-5), ("below_1e-6", 1e-6), ("below_1e-7", 1e-7)):
        assert values[f"sparsity/{name}"] == int((frequency < limit).sum())
    errors = (recons - x).norm(dim=-1)
    want = {
        "metrics/l0": fires.float().sum(dim=-1).mean(),
        "metrics/mean_feature_act": features[fires].mean(),
        "metrics/l2_norm_error": errors.mean(),
        "metrics/l2_norm_error_ratio": (errors / x.norm(dim=-1)).mean(),
        "metrics/encoder_norm": sae.W_enc.norm(dim=0).mean(),
        "metrics/decoder_norm": sae.W_dec.norm(dim=-1).mean(),
        "metrics/decoder_bias_norm": sae.b_dec.norm(),
        "losses/sparsity_loss": 0.01 * (features * sae.W_dec.norm(dim=-1)).sum(dim=-1).mean(),
    }
    for name, value in want.items():
        assert values[name] == pytest.approx(value.item(), rel=1e-4), name
    assert values["losses/overall_loss"] == pytest.approx(
        values["losses/mse_loss"] + values["losses/sparsity_loss"]
    )


def test_values_of_settings():
    values, _ = _logged(4, 4, auxk_coefficient=0.25, dead_threshold=1e9)
    assert values["details/current_learning_rate"] == 0.0
    assert values["details/l1_coefficient"] == 0.01
    assert values["details/auxk_coefficient"] == 0.25
    assert values["details/n_training_tokens"] == 3 * N_TOKENS
    assert "details/lp_coefficient" not in values


def test_gradient_norms_are_the_largest_since_the_last_log():
    name = "metrics/gradient_norm_before_clipping"
    apart = []
    for batch in batches(3):
        log = Recorder()
        cfg = config(1, lr=0.0, log_frequency=1)
        Trainer(cfg).fit(tiny_sae(), [batch], wandb_logger=log)
        apart.append(log.logged[0][1][name])
    assert len(set(apart)) == 3
    values, _ = _logged(3, 3)
    assert values[name] == pytest.approx(max(apart))
