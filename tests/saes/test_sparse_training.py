"""The sparse form of a training step against the dense one: values, losses and all gradients."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.kernels.dispatch import has_sparse_kernels
from sae_lens.saes import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.abs_topk import AbsTopKTrainingSAEConfig
from sae_lens.saes.batch_topk import BatchTopKTrainingSAEConfig
from sae_lens.saes.cross_layer_training import BatchTopKCrossLayerTranscoderTrainingConfig
from sae_lens.saes.crosscoder_training import (
    CrosscoderTrainingConfig,
    TopKCrosscoderTrainingConfig,
)
from sae_lens.saes.gated import GatedTrainingSAEConfig
from sae_lens.saes.jumprelu import JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batch_topk import MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.standard import StandardTrainingSAEConfig
from sae_lens.saes.topk import TopKTrainingSAEConfig
from sae_lens.saes.training_step import reported_features
from tests.helpers import (
    D_IN,
    D_SAE,
    NORMALIZATIONS,
    activations,
    make_training_sae,
    randomize,
    several_hooks_configs,
)

pytestmark = pytest.mark.skipif(
    not has_sparse_kernels(torch.device("cpu"), torch.float32),
    reason="this torch has no sparse products for the CPU (built without MKL)",
)

V5_CASES: list[tuple[str, dict[str, Any]]] = [
    *[(a, {}) for a in ("standard", "gated", "jumprelu", "topk")],
    *[(a, {"dtype": "float64"}) for a in ("standard", "gated", "jumprelu", "topk")],
    *[(a, {"apply_b_dec_to_input": False}) for a in ("standard", "gated", "jumprelu", "topk")],
    *[(a, {"finetuning_scaling_factor": True}) for a in ("standard", "gated", "jumprelu", "topk")],
    *[("standard", {"normalize_activations": kind}) for kind in NORMALIZATIONS],
    ("topk", {"normalize_activations": "layer_norm"}),
    ("gated", {"normalize_activations": "constant_norm_rescale"}),
    ("standard", {"mse_loss_normalization": "dense_batch"}),
    ("standard", {"activation_fn_str": "tanh-relu"}),
    *[("standard", {"lp_norm": p}) for p in (0.5, 2.0)],
    ("standard", {"scale_sparsity_penalty_by_decoder_norm": True, "lp_norm": 2.0}),
    ("standard", {"scale_sparsity_penalty_by_decoder_norm": True}),
    ("standard", {"use_ghost_grads": True}),
    ("jumprelu", {"jumprelu_bandwidth": 2.0}),
]

_SIZE = {"d_in": D_IN, "d_sae": D_SAE}
V6_CASES: list[Any] = [
    StandardTrainingSAEConfig(**_SIZE),
    *[GatedTrainingSAEConfig(**_SIZE, detach_auxiliary_decoder=d) for d in (False, True)],
    *[
        JumpReLUTrainingSAEConfig(
            **_SIZE,
            jumprelu_sparsity_loss_mode=mode,
            jumprelu_ste_to_input=to_input,
            pre_act_loss_coefficient=0.3,
            target_l0=4.0,
            jumprelu_bandwidth=0.3,
        )
        for mode in ("step", "tanh", "quadratic")
        for to_input in (False, True)
    ],
    *[TopKTrainingSAEConfig(**_SIZE, k=4, rescale_acts_by_decoder_norm=r) for r in (False, True)],
    *[
        BatchTopKTrainingSAEConfig(**_SIZE, k=3.5, rescale_acts_by_decoder_norm=r)
        for r in (False, True)
    ],
    *[
        AbsTopKTrainingSAEConfig(**_SIZE, k=4, rescale_acts_by_decoder_norm=r)
        for r in (False, True)
    ],
    *[
        MatryoshkaBatchTopKTrainingSAEConfig(
            **_SIZE,
            k=3.5,
            matryoshka_widths=widths,
            rescale_acts_by_decoder_norm=r,
            use_matryoshka_aux_loss=r,
        )
        for r in (False, True)
        for widths in ([6, 20, D_SAE], [D_SAE])
    ],
    *[c for name, c in several_hooks_configs(d_in=8).items() if "transcoder" not in name],
    *[c for name, c in several_hooks_configs(d_in=4).items() if "transcoder" in name],
    CrosscoderTrainingConfig(d_in=4, d_sae=D_SAE, hook_names=list("abcd"), decoder_norm="l2"),
    TopKCrosscoderTrainingConfig(
        d_in=4, d_sae=D_SAE, hook_names=list("abcd"), k=4, rescale_acts_by_decoder_norm=False
    ),
    BatchTopKCrossLayerTranscoderTrainingConfig(
        d_in=4,
        d_sae=D_SAE,
        hook_names=["a", "b"],
        hook_names_out=["c", "d"],
        k=1.5,
        rescale_acts_by_decoder_norm=False,
    ),
]


def one_pass(
    sae: TrainingSAE, mode: str, x: Tensor, dead: Tensor | None
) -> tuple[TrainStepOutput, dict[str, Tensor]]:
    return one_pass_of_step(sae, mode, TrainStepInput(x, {"l1": 0.7}, dead))


def one_pass_of_step(
    sae: TrainingSAE, mode: str, step: TrainStepInput
) -> tuple[TrainStepOutput, dict[str, Tensor]]:
    sae = copy.deepcopy(sae).train()
    sae.sparse_kernels = mode  # type: ignore[assignment]
    x = step.sae_in.clone().requires_grad_()
    output = sae.training_forward_pass(replace(step, sae_in=x))
    output.loss.backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in sae.named_parameters()
    }
    assert x.grad is not None
    return output, {**gradients, "sae_in": x.grad}


def assert_forms_agree(sae: TrainingSAE, dead: Tensor | None) -> None:
    width = sum(getattr(sae, "activation_widths", (D_IN,)))
    x = activations(10, width, dtype=sae.dtype).to(sae.device)
    if sae.dtype == torch.float64:
        exact = {"atol": 1e-11, "rtol": 1e-9}
    else:
        exact = {"atol": 3e-5, "rtol": 1e-4}
    dense, dense_gradients = one_pass(sae, "dense", x, dead)
    sparse, sparse_gradients = one_pass(sae, "sparse", x, dead)
    assert sparse.metrics["sparse_kernels"] == 1.0
    assert sparse.feature_acts.is_sparse and not dense.feature_acts.is_sparse
    features = sparse.feature_acts.to_dense()
    torch.testing.assert_close(features, dense.feature_acts, **exact)
    assert sparse.feature_acts._nnz() == dense.feature_acts.count_nonzero()
    active = features != 0
    assert active.any() and not active.all()
    torch.testing.assert_close(
        sparse.hidden_pre.to_dense()[active], dense.hidden_pre[active], **exact
    )
    torch.testing.assert_close(sparse.sae_out, dense.sae_out, **exact)
    assert list(sparse.losses) == list(dense.losses)
    for name in dense.losses:
        torch.testing.assert_close(sparse.losses[name], dense.losses[name], **exact)
    torch.testing.assert_close(sparse.loss, dense.loss, **exact)
    assert dense_gradients.keys() == sparse_gradients.keys()
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(
            sparse_gradients[name], gradient, **exact, msg=lambda m, name=name: f"{name}: {m}"
        )


DEAD_FEATURES: dict[str, Tensor | None] = {
    "no mask": None,
    "none dead": torch.zeros(D_SAE, dtype=torch.bool),
    "some dead": torch.arange(D_SAE) % 5 == 0,
    "most dead": torch.arange(D_SAE) % 5 != 0,
}


@pytest.mark.parametrize("dead", DEAD_FEATURES)
@pytest.mark.parametrize(("architecture", "fields"), V5_CASES, ids=str)
def test_forms_agree_v5(architecture: str, fields: dict[str, Any], dead: str) -> None:
    sae = make_training_sae(architecture, **fields)
    if architecture == "jumprelu" and "jumprelu_bandwidth" not in fields:
        with torch.no_grad():
            sae.b_enc -= 0.5
    assert_forms_agree(sae, DEAD_FEATURES[dead])


@pytest.mark.parametrize("dead", DEAD_FEATURES)
@pytest.mark.parametrize("config", V6_CASES, ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}")
def test_forms_agree_v6(config: Any, dead: str) -> None:
    sae = TrainingSAE(copy.deepcopy(config))
    randomize(sae)
    with torch.no_grad():
        sae.W_dec[7] = 0  # whose norm cannot be divided by
    assert_forms_agree(sae, DEAD_FEATURES[dead])


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_the_choice_follows_the_density(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_lens.kernels.dispatch._SMALLEST_WORK", 1)
    monkeypatch.setattr("sae_lens.kernels.dispatch._SPARSE_BELOW", 0.2)
    monkeypatch.setattr("sae_lens.kernels.dispatch._DENSE_ABOVE", 0.3)
    sae = make_training_sae(architecture)

    def step() -> float:
        return sae.training_forward_pass(activations(20), 0.1).metrics["sparse_kernels"]

    with torch.no_grad():
        if architecture == "topk":
            assert step() == 1.0  # five of 48 are known to be active
            sae.activation_fn.k = 20
            assert step() == 0.0
            return
        bias = sae.b_gate if architecture == "gated" else sae.b_enc
        bias.fill_(-100.0)
        assert step() == 0.0
        assert step() == 1.0
        bias.fill_(100.0)
        assert step() == 1.0
        assert step() == 0.0


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_what_nobody_asked_to_be_sparse_reads_as_dense(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_lens.kernels.dispatch._SMALLEST_WORK", 1)
    monkeypatch.setattr("sae_lens.kernels.dispatch._SPARSE_BELOW", 2.0)
    monkeypatch.setattr("sae_lens.kernels.dispatch._DENSE_ABOVE", 3.0)
    sae = make_training_sae(architecture)
    x = activations(20)
    sae.training_forward_pass(x, 0.1)  # measures the density
    output = sae.training_forward_pass(x, 0.1)
    assert output.metrics["sparse_kernels"] == 1.0
    assert reported_features(output).is_sparse
    assert "feature_acts" not in vars(output)
    sae.sparse_kernels = "dense"
    want = sae.training_forward_pass(x, 0.1)
    assert reported_features(want) is want.feature_acts
    exact = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(output.feature_acts, want.feature_acts, **exact)
    torch.testing.assert_close(output.hidden_pre, want.hidden_pre, **exact)
    assert output.feature_acts is output.feature_acts
    assert (output.feature_acts > 0).sum(-1).float().mean() > 0
    (gradient,) = torch.autograd.grad(output.feature_acts.pow(2).sum(), sae.W_enc)
    (wanted,) = torch.autograd.grad(want.feature_acts.pow(2).sum(), sae.W_enc)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(AttributeError, match="nothing"):
        _ = output.nothing


def test_small_steps_report_no_choice() -> None:
    assert make_training_sae().training_forward_pass(activations(), 0.1).metrics == {}


def test_listeners_noise_and_overridden_formulas_get_the_dense_form() -> None:
    def is_sparse(sae: TrainingSAE) -> bool:
        sae.sparse_kernels = "sparse"
        return sae.training_forward_pass(activations(), 0.1).feature_acts.is_sparse

    sae = make_training_sae()
    assert is_sparse(sae)
    seen = []
    sae.add_hook("hook_sae_acts_post", lambda value, hook: seen.append(value.shape))
    assert not is_sparse(sae)
    assert seen == [(6, D_SAE)]
    assert not is_sparse(make_training_sae(noise_scale=0.1).train())
    assert is_sparse(make_training_sae(noise_scale=0.1).eval())
    assert not is_sparse(make_training_sae(activation_fn_str="topk", activation_fn_kwargs={"k": 3}))
    assert is_sparse(make_training_sae(dtype="bfloat16"))
    assert not is_sparse(make_training_sae(dtype="float16"))

    class Doubled(TrainingSAE):
        def decode(self, feature_acts: Tensor) -> Tensor:
            return 2 * super().decode(feature_acts)

    sae = Doubled(make_training_sae().cfg)
    assert not is_sparse(sae)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are auto, dense, sparse"):
        make_training_sae().sparse_kernels = "quick"  # type: ignore[assignment]


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_recycled_gradients_keep_their_memory_and_are_right(architecture: str) -> None:
    sae = make_training_sae(architecture).train()
    sae.sparse_kernels = "sparse"

    def gradient(x: Tensor) -> Tensor:
        sae.training_forward_pass(x, 0.1).loss.backward()
        assert sae.W_enc.grad is not None and sae.W_dec.grad is not None
        assert sae.W_enc.grad.stride() == sae.W_enc.stride()
        return sae.W_enc.grad

    first = gradient(activations())
    addresses = {sae.W_enc.grad.data_ptr(), sae.W_dec.grad.data_ptr()}
    expected = first.clone()
    sae.recycle_gradients()
    sae.zero_grad()
    gradient(activations(seed=2))
    assert {sae.W_enc.grad.data_ptr(), sae.W_dec.grad.data_ptr()} == addresses
    sae.recycle_gradients()
    sae.zero_grad()
    torch.testing.assert_close(gradient(activations()), expected)


def test_gradients_accumulate_over_passes() -> None:
    sae = make_training_sae().train()
    sae.sparse_kernels = "sparse"
    x = activations(8)
    sae.training_forward_pass(x[:4], 0.1).loss.backward()
    sae.training_forward_pass(x[4:], 0.1).loss.backward()
    got = sae.W_enc.grad.clone()
    sae.zero_grad()
    sae.sparse_kernels = "dense"
    (2 * sae.training_forward_pass(x, 0.1).loss).backward()
    torch.testing.assert_close(got, sae.W_enc.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_autocast_is_close_in_both_forms(architecture: str) -> None:
    sae = make_training_sae(architecture)
    exact, exact_gradients = one_pass(sae, "dense", activations(20), None)
    for mode in ("dense", "sparse"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, gradients = one_pass(sae, mode, activations(20), None)
        assert output.loss.dtype == torch.float32
        torch.testing.assert_close(output.loss, exact.loss, atol=0.0, rtol=0.05)
        for name, gradient in gradients.items():
            assert gradient.dtype == torch.float32
            difference = (gradient - exact_gradients[name]).norm()
            assert difference <= 0.2 * exact_gradients[name].norm() + 1e-3, (mode, name)


def test_a_copy_or_pickle_of_an_sae_trains_on() -> None:
    sae = make_training_sae().train()
    sae.sparse_kernels = "sparse"
    sae.training_forward_pass(activations(), 0.1).loss.backward()
    sae.recycle_gradients()
    again = copy.deepcopy(sae)
    assert again.sparse_kernels == "sparse"
    assert again.training_forward_pass(activations(), 0.1).feature_acts.is_sparse
    assert "workspace" not in " ".join(sae.state_dict())


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_training_ends_at_the_same_loss_in_both_forms(architecture: str) -> None:
    """Two hundred steps of Adam; the forms differ by the order of additions alone."""

    def final_loss(mode: str) -> float:
        sae = make_training_sae(architecture, dtype="float64", jumprelu_bandwidth=0.05).train()
        sae.sparse_kernels = mode  # type: ignore[assignment]
        optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
        for step in range(200):
            x = activations(16, seed=step, dtype=torch.float64)
            output = sae.training_forward_pass(x, 0.1)
            output.loss.backward()
            optimizer.step()
            sae.recycle_gradients()
            optimizer.zero_grad()
        return output.loss.item()

    assert final_loss("sparse") == pytest.approx(final_loss("dense"), rel=1e-6)


@pytest.mark.parametrize(
    "config",
    [config for config in V6_CASES if "topk" in config.architecture],
    ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}",
)
def test_nothing_of_the_size_of_all_features_is_kept_for_the_backward_pass(config: Any) -> None:
    sae = TrainingSAE(copy.deepcopy(config))
    n_tokens = 400
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor._nnz() if tensor.is_sparse else tensor.numel())
        return tensor

    x = activations(n_tokens, sum(getattr(sae, "activation_widths", (D_IN,))))
    sae.sparse_kernels = "sparse"
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sae.training_forward_pass(TrainStepInput(x))
    assert kept
    # rows of the levels or layers that reconstruct apart may be kept, but no row of all features
    assert max(kept) < n_tokens * D_SAE
