"""Every setting of a training config has an effect, or is named as one that has none."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes import (
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.saes.idle_settings import idle_settings
from sae_lens.saes.training_step import TrainStepInput
from sae_lens.training.trainer import SAETrainer
from tests.helpers import D_IN, D_SAE, activations, flat_config_dict, several_hooks_configs

# About model, hook and data, or read by the trainer.
_ELSEWHERE = {
    "architecture", "d_in", "d_sae", "context_size", "model_name", "hook_name", "hook_layer",
    "hook_head_index", "prepend_bos", "dataset_path", "dataset_trust_remote_code", "dtype",
    "device", "sae_lens_training_version", "activation_fn_kwargs", "neuronpedia_id",
    "model_from_pretrained_kwargs", "seqpos_slice", "hook_names", "model_names", "hook_names_out",
    "hook_name_out", "d_out", "k", "l1_warm_up_steps", "l0_warm_up_steps", "normalize_sae_decoder",
    "finetuning_scaling_factor", "matryoshka_widths",
}  # fmt: skip
# How features are handed on, not which.
_FORM_ONLY = {"use_sparse_activations"}

VALUES: dict[str, Any] = {
    "activation_fn_str": "tanh-relu", "normalize_activations": "constant_norm_rescale",
    "mse_loss_normalization": "dense_batch", "sparsity_loss": "tanh", "noise_scale": 0.5,
    "jumprelu_sparsity_loss_mode": "tanh", "pre_act_loss_coefficient": 2.0, "target_l0": 7.0,
    "lp_norm": 2.0, "decoder_norm": "l2", "max_iterations": 1, "residual_threshold": 5.0,
    "decoder_heuristic_init_norm": 0.7, "jumprelu_init_threshold": 0.3, "topk_threshold_lr": 0.7,
}  # fmt: skip

# Where a case has the value above already.
OTHERS: dict[str, Any] = {"sparsity_loss": "power", "jumprelu_sparsity_loss_mode": "step"}


def _flat(architecture: str) -> Any:
    values = flat_config_dict(architecture, normalize_sae_decoder=False)
    return TrainingSAEConfig.from_dict(values)


def _v6(name: str, **values: Any) -> Any:
    return get_sae_training_class(name).config_class(d_in=D_IN, d_sae=D_SAE, **values)


CONFIGS: dict[str, Any] = {
    "standard": _v6("standard"),
    "standard, tanh-quad": _v6("standard", sparsity_loss="tanh-quad"),
    "gated": _v6("gated"),
    "gated, tanh": _v6("gated", sparsity_loss="tanh"),
    "jumprelu": _v6("jumprelu"),
    "jumprelu, quadratic": _v6("jumprelu", jumprelu_sparsity_loss_mode="quadratic", target_l0=4.0),
    "jumprelu, tanh-quad": _v6("jumprelu", jumprelu_sparsity_loss_mode="tanh-quad"),
    "jumprelu, power": _v6("jumprelu", jumprelu_sparsity_loss_mode="power"),
    "topk": _v6("topk", k=4),
    "batchtopk": _v6("batchtopk", k=4),
    "matching_pursuit": _v6("matching_pursuit", max_iterations=3),
    "skip_transcoder": _v6("skip_transcoder"),
    "topk_transcoder": _v6("topk_transcoder", k=4),
    "flat standard": _flat("standard"),
    "flat gated": _flat("gated"),
    "flat jumprelu": _flat("jumprelu"),
    "flat topk": _flat("topk"),
    **{
        name: config
        for name, config in several_hooks_configs().items()
        if name in ("crosscoder", "jumprelu_cross_layer_transcoder")
    },
}


def trace(config: Any) -> list[Tensor]:
    """First weights, and the loss, gradients and buffers of a step with dead features."""
    torch.manual_seed(0)
    sae = TrainingSAE(copy.deepcopy(config))
    first = [value.detach().clone() for value in sae.parameters()]
    with torch.no_grad():
        for parameter in sae.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.01)
    batch = activations(12, sum(getattr(sae, "activation_widths", (D_IN,))), seed=1)
    dead = torch.arange(D_SAE) % 3 == 0
    coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
    torch.manual_seed(1)
    output = sae.training_forward_pass(TrainStepInput(batch, coefficients, dead))
    output.loss.backward()
    gradients = [value.grad for value in sae.parameters() if value.grad is not None]
    return [*first, output.loss.detach(), *gradients, *sae.buffers()]


def other_value(name: str, value: Any) -> Any:
    """Another value for a setting."""
    if name in VALUES:
        return VALUES[name] if VALUES[name] != value else OTHERS[name]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, (int, float)), f"VALUES has no other value for {name}"
    return 2 * value or 0.5


@pytest.mark.parametrize("case", CONFIGS)
def test_settings_have_an_effect_or_are_named(case: str):
    config = CONFIGS[case]
    assert idle_settings(config) == {}
    before = trace(config)
    for field in fields(config):
        name = field.name
        if name in _ELSEWHERE | _FORM_ONLY or not field.init:
            continue
        if name == "activation_fn_str" and config.activation_fn_str == "topk":
            continue  # topk SAEs select with it; see below
        changed = copy.deepcopy(config)
        value = other_value(name, getattr(config, name))
        setattr(changed, name, value)
        if name == "decoder_heuristic_init_norm":
            changed.decoder_heuristic_init = True
            base = copy.deepcopy(config)
            base.decoder_heuristic_init = True
            want = trace(base)
        else:
            want = before
        try:
            got = trace(changed)
        except ValueError:
            continue  # refused before training
        is_same = all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        # others may be idle now, such as the target of a loss that is not chosen any more
        named = {key: v for key, v in idle_settings(changed).items() if key == name}
        assert named == ({name: value} if is_same else {}), (name, is_same)


def test_topk_selects_with_its_activation_function():
    with pytest.raises(ValueError, match="activation_fn_str is 'relu'"):
        _v6("topk", k=4, activation_fn_str="relu")
    assert idle_settings(_v6("batchtopk", k=4, activation_fn_str="tanh-relu"))


def test_a_trainer_on_batches_says_so(caplog: Any):
    sae = TrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4, l1_coefficient=3.0))
    SAETrainer(SAETrainerConfig(16, 8), sae, iter([activations(8)] * 2))
    assert "l1_coefficient=3.0 has no effect on the topk architecture" in caplog.text


@pytest.mark.parametrize(
    "cls", [StandardTrainingSAEConfig, GatedTrainingSAEConfig, JumpReLUTrainingSAEConfig]
)
def test_what_other_people_read_is_theirs(cls: Any):
    class Mine(cls):
        pass

    settings = {"decoder_orthogonal_init": True}
    assert idle_settings(cls(d_in=D_IN, d_sae=D_SAE, **settings)) == settings
    assert idle_settings(Mine(d_in=D_IN, d_sae=D_SAE, **settings)) == {}
