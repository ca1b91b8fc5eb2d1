"""Training features that `TrainerConfig` has no fields for, in runs of `Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_lens.lm_saes import Initializer, InitializerConfig, SAEAdapter, Trainer
from sae_lens.saes import StandardTrainingSAEConfig, TrainingSAE
from sae_lens.training.features import TrainingFeatures
from tests.helpers import D_IN, D_SAE, activations, assert_close
from tests.lm_saes.helpers import HOOK, N_TOKENS, batches, config, tiny_sae


def losses(trainer: Trainer, sae: TrainingSAE, n_steps: int, read: Any) -> list[Any]:
    """What `read` makes of the loss of every step."""
    seen: list[Any] = []
    real = trainer._training_step

    def spy(*args: Any) -> Any:
        tokens, parts = real(*args)
        seen.append(read(parts))
        return tokens, parts

    trainer._training_step = spy  # type: ignore[method-assign]
    trainer.fit(sae, batches(n_steps))
    return seen


def test_averaged_weights_are_saved_on_the_way_and_returned(tmp_path: Path):
    sae, history = tiny_sae(), []
    cfg = config(4, n_checkpoints=2, check_point_save_mode="linear", exp_result_path=str(tmp_path))
    trainer = Trainer(cfg, {"weight_average": {"decay": 0.5}})
    update = trainer._update
    trainer._update = lambda sae: (update(sae), history.append(sae.W_dec.detach().clone()))  # type: ignore[method-assign]
    assert trainer.fit(sae, batches(4)) is None
    means = [history[0]]
    for weights in history[1:]:
        means.append(0.5 * means[-1] + 0.5 * weights)
    assert_close(sae.W_dec, means[-1])
    saved = load_file(tmp_path / "checkpoints" / "2.safetensors")
    assert_close(saved["W_dec"], means[1])
    assert (saved["W_dec"] - history[1]).abs().max() > 1e-5


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_l0_is_steered_to_a_target(architecture: str):
    fields: dict[str, Any] = {"jumprelu_bandwidth": 0.3} if architecture == "jumprelu" else {}
    sae = tiny_sae(architecture, **fields)
    target = {"target": 6.0, "smoothing": 0.5}
    cfg = config(250, lr=1e-2, sparsity_loss_type="tanh", l1_coefficient=0.1)
    trainer = Trainer(cfg, {"target_l0": target})
    l0 = losses(trainer, sae, 250, lambda parts: (parts.feature_acts > 0).float().sum(-1).mean())
    assert l0[0] > 12
    assert sum(map(float, l0[-20:])) / 20 == pytest.approx(6.0, rel=0.25)


def test_a_target_out_of_reach_is_reported(caplog: Any):
    Trainer(config(3), {"target_l0": {"target": 1.0}}).fit(tiny_sae(), batches(3))
    assert "target L0 of 1.0 was not reached: it ended at" in caplog.text


def test_p_and_weights_follow_their_schedules():
    features = {
        "p_schedule": {"end": 0.5},
        "weight_schedules": {
            "sparsity": {"start": 2.0, "steps": 2},
            "auxiliary": {"start": 0.0, "end": 4.0},
        },
    }
    given: list[tuple[Any, ...]] = []
    real = SAEAdapter.compute_loss

    def spy(adapter: SAEAdapter, batch: Any, **kwargs: Any) -> Any:
        given.append((kwargs["p"], kwargs["l1_coefficient"], kwargs["auxk_coefficient"]))
        return real(adapter, batch, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAEAdapter, "compute_loss", spy)
        Trainer(config(4, auxk_coefficient=0.5), features).fit(tiny_sae(), batches(4))
    assert [row[0] for row in given] == pytest.approx([1.0, 0.875, 0.75, 0.625])
    assert [row[1] for row in given] == pytest.approx([0.02, 0.015, 0.01, 0.01])
    assert [row[2] for row in given] == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_dead_features_start_anew():
    sae = tiny_sae()
    with torch.no_grad():
        sae.b_enc[:10] = -100
    cfg = config(4, dead_threshold=2 * N_TOKENS)
    Trainer(cfg, {"resampling": {"every": 4, "until": 1.0}}).fit(sae, batches(4))
    assert not sae.b_enc[:10].any()
    alive = sae.W_enc[:, 10:].norm(dim=0).mean()
    assert_close(sae.W_enc[:, :10].norm(dim=0), (0.2 * alive).expand(10), atol=1e-3)


@pytest.mark.parametrize("asked_by", ["features", "sae"])
def test_ghost_gradients(asked_by: str):
    sae = tiny_sae(use_ghost_grads=asked_by == "sae")
    with torch.no_grad():
        sae.b_enc[:10] = -3.0
    features = {"ghost_gradients": True} if asked_by == "features" else None
    before = sae.W_enc[:, :10].detach().clone()
    trainer = Trainer(config(6, dead_threshold=1), features)
    seen = losses(trainer, sae, 6, lambda parts: parts.output.losses["ghost_grad_loss"].item())
    assert seen[0] == 0 < seen[-1]
    assert (sae.W_enc[:, :10] - before).norm() > 1e-4


def test_another_optimiser():
    path = "torch.optim.AdamW"
    trainer = Trainer(config(2), {"optimizer": {"path": path, "options": {"weight_decay": 0.1}}})
    trainer.fit(tiny_sae(), batches(2))
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_overlong_activations_are_left_out_and_noted():
    sae, short = tiny_sae(normalize_activations="expected_average_only_in"), tiny_sae()
    SAEAdapter(sae).set_dataset_average_activation_norm({HOOK: 2.0})
    data = batches(3)
    for batch in data:
        batch[HOOK][5] *= 100
    trainer = Trainer(config(3), {"norm_filter": {"multiple": 5.0}})
    trainer.fit(sae, data)
    assert trainer.cur_tokens == 3 * (N_TOKENS - 1)
    assert sae.cfg.metadata.norm_filter_multiple == 5.0
    median = data[0][HOOK].norm(dim=-1).median().item()
    assert sae.cfg.metadata.norm_filter_median == pytest.approx(median, rel=1e-5)
    kept = torch.arange(N_TOKENS) != 5
    Trainer(config(3)).fit(
        short, [{"tokens": torch.zeros(32), HOOK: b[HOOK][kept] * D_IN**0.5 / 2} for b in data]
    )
    assert_close(sae.W_dec, short.W_dec)


FEATURES: dict[str, Any] = {
    "weight_average": {"decay": 0.7},
    "target_l0": {"target": 5.0},
    "p_schedule": {"end": 0.5},
    "weight_schedules": {"auxiliary": {"start": 2.0}},
    "ghost_gradients": True,
    "norm_filter": {"multiple": 1.3},
}


def test_a_run_with_features_goes_on_bit_for_bit(tmp_path: Path):
    fields = {"auxk_coefficient": 0.1, "dead_threshold": N_TOKENS, "lr": 1e-2}
    data = batches(10)
    whole, first, rest = tiny_sae(), tiny_sae(), tiny_sae(seed=4)
    Trainer(config(10, **fields), FEATURES).fit(whole, data)
    trainer = Trainer(config(10, **fields), FEATURES)
    trainer.fit(first, data[:5])
    folder = trainer.save_checkpoint(first, tmp_path)
    resumed = Trainer.from_checkpoint(rest, folder, load_weights=True)
    assert resumed.features == TrainingFeatures.of(FEATURES)
    resumed.fit(rest, data[5:])
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
@pytest.mark.parametrize("kind", ["power", "tanh", "tanh-quad", None])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_sparse_kernels_give_the_same_training(architecture: str, kind: Any, kernels: str):
    """Against the dense form in double precision, with aux-k, statistics and logs."""
    fields: dict[str, Any] = {
        "sparsity_loss_type": kind,
        "auxk_coefficient": 0.1,
        "dead_threshold": N_TOKENS,
        "p": 2,
    }
    results: dict[str, tuple[dict[str, Tensor], Any]] = {}
    for mode in ("dense", kernels):
        sae = tiny_sae(architecture, dtype="float64")
        sae.sparse_kernels = mode
        trainer = Trainer(config(6, **fields))
        data = [{**b, HOOK: b[HOOK].double()} for b in batches(6)]
        used: list[bool] = []
        real = trainer._training_step

        def spy(*args: Any, real: Any = real, used: list[bool] = used) -> Any:
            tokens, parts = real(*args)
            used.append(parts.feature_acts.is_sparse)
            return tokens, parts

        trainer._training_step = spy  # type: ignore[method-assign]
        logged: list[dict[str, Any]] = []

        class Log:
            def log(
                self, values: Any, step: Any = None, logged: list[dict[str, Any]] = logged
            ) -> None:
                logged.append(values)

        trainer.fit(sae, data, wandb_logger=Log())
        assert used == [mode == "sparse"] * 6
        results[mode] = (dict(sae.state_dict()), logged)
    dense, other = results["dense"], results[kernels]
    for name, value in dense[0].items():
        # thresholds are float32 whatever the dtype
        tolerance = 1e-5 if architecture == "jumprelu" else 1e-9
        assert_close(other[0][name], value, atol=tolerance, rtol=tolerance)
    for mine, theirs in zip(other[1], dense[1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_sparse_kernels_work_under_autocast(architecture: str):
    weights = []
    for mode in ("dense", "sparse"):
        sae = tiny_sae(architecture)
        sae.sparse_kernels = mode
        Trainer(config(6, amp_dtype="bfloat16", auxk_coefficient=0.1)).fit(sae, batches(6))
        assert sae._sparse_choice.is_sparse == (mode == "sparse")
        weights.append(sae.W_dec.detach().clone())
    assert_close(weights[0], weights[1], atol=5e-3)
    assert weights[0].dtype == torch.float32


BAD: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    ("standard", {}, {"lr_schedule": {}}, "use lr_scheduler_name and the fields after it"),
    ("topk", {}, {"k_schedule": {"initial_k": 9}}, "use initial_k and the fields after it"),
    ("standard", {}, {"aux_k": {}}, "use auxk_coefficient and k_aux"),
    ("standard", {}, {"gradient_accumulation_steps": 2}, "use gradient_accumulation_steps"),
    ("standard", {}, {"max_gradient_norm": 0.5}, "use clip_grad_norm"),
    ("standard", {}, {"initial_weights": {}}, "use InitializerConfig"),
    ("standard", {}, {"dead_after_tokens": 9}, "use dead_threshold"),
    ("standard", {}, {"checkpoint_spacing": "log"}, "use check_point_save_mode"),
    (
        "standard",
        {"optimizer_class": "sparseadam"},
        {"optimizer": {"path": "torch.optim.AdamW"}},
        "both name an optimiser",
    ),
    ("standard", {"sparsity_loss_type": "tanh"}, {"p_schedule": {}}, "the others have no p"),
    ("standard", {"sparsity_loss_type": None}, {"target_l0": {"target": 4}}, "and .* is None"),
    ("standard", {}, {"weight_schedules": {"auxiliary": {}}}, "nothing to scale"),
    ("standard", {}, {"weight_schedules": {"pre_act": {}}}, "nothing to scale"),
    ("standard", {}, {"target_l0": {"target": D_SAE + 1}}, "there are only 48 features"),
    ("standard", {}, {"p_schedule": {"first_step": 8, "steps": 9}}, "the training has only 10"),
    ("topk", {"initial_k": D_SAE + 1}, {}, "its number of features, 48"),
    (
        "standard",
        {"lr_scheduler_name": "linearwarmupdecay", "lr_warm_up_steps": 10},
        {},
        "leaves none to fall in",
    ),
]


@pytest.mark.parametrize(("architecture", "fields", "features", "message"), BAD)
def test_contradictions_are_refused_before_training(
    architecture: str, fields: Any, features: Any, message: str
):
    sae = tiny_sae(architecture)
    before = sae.W_enc.detach().clone()
    with pytest.raises(ValueError, match=message):
        Trainer(config(10, **fields), features).fit(sae, batches(10))
    assert torch.equal(sae.W_enc, before)


def test_whitened_activations_are_for_the_other_trainer():
    sae = TrainingSAE(
        StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations="whitening")
    )
    with pytest.raises(ValueError, match="train such an SAE with that one"):
        SAEAdapter(sae).compute_loss({"": activations()})


def test_a_warm_up_that_does_not_end_is_said_so(caplog: Any):
    Trainer(config(4, lr_warm_up_steps=5000)).fit(tiny_sae(), batches(4))
    assert "still be rising at the end" in caplog.text


IDLE: list[tuple[str, dict[str, Any]]] = [
    ("standard", {"lp_coefficient": 0.1}),
    ("topk", {"jumprelu_lr_factor": 0.5}),
    ("standard", {"initial_k": 9}),
    ("topk", {"k_cold_booting_steps": 2}),
    ("standard", {"p": 2, "sparsity_loss_type": "tanh"}),
    ("standard", {"tanh_stretch_coefficient": 2.0}),
    ("standard", {"frequency_scale": 0.5, "sparsity_loss_type": "tanh"}),
    ("topk", {"k_aux": 7}),
    ("jumprelu", {"feature_sampling_window": 7}),
]


@pytest.mark.parametrize(("architecture", "fields"), IDLE)
def test_settings_without_effect_say_so(architecture: str, fields: Any, caplog: Any):
    Trainer(config(2, **fields)).fit(tiny_sae(architecture), batches(2))
    name, value = next(iter(fields.items()))
    assert f"{name}={value!r} has no effect on the training of this {architecture}" in caplog.text


def test_a_rate_that_falls_before_it_has_risen_is_said_so(caplog: Any):
    Trainer(config(4, lr_warm_up_steps=3, lr_cool_down_steps=2)).fit(tiny_sae(), batches(4))
    assert "falls before it has risen" in caplog.text


RULES: list[tuple[str, dict[str, Any]]] = [
    ("standard", {"encoder_uniform_bound": 0.5}),
    (
        "standard",
        {
            "init_encoder_with_decoder_transpose_factor": 0.5,
            "init_encoder_with_decoder_transpose": False,
        },
    ),
    ("topk", {"init_log_jumprelu_threshold_value": -1.0}),
    ("standard", {"d_active_subspace": 3}),
    ("standard", {"model_layer": 2}),
]


@pytest.mark.parametrize(("architecture", "fields"), RULES)
def test_rules_without_effect_say_so(architecture: str, fields: Any, caplog: Any):
    Initializer(InitializerConfig(**fields)).initialize_parameters(tiny_sae(architecture))
    name, value = next(iter(fields.items()))
    text = f"{name}={value!r} has no effect on the first weights of this {architecture} SAE"
    assert text in caplog.text
    caplog.clear()
    Initializer(InitializerConfig()).initialize_parameters(tiny_sae(architecture))
    assert caplog.text == ""


def test_settings_with_an_effect_do_not(caplog: Any):
    fields = {"lp_coefficient": 0.1, "jumprelu_lr_factor": 0.5, "auxk_coefficient": 0.1, "k_aux": 7}
    Trainer(config(2, **fields, p=2)).fit(tiny_sae("jumprelu"), batches(2))
    Trainer(config(4, initial_k=9, k_cold_booting_steps=1)).fit(tiny_sae("topk"), batches(4))
    assert "no effect" not in caplog.text


def test_a_k_that_does_not_arrive_is_said_so(caplog: Any):
    Trainer(config(4, initial_k=9, k_warmup_steps=8)).fit(tiny_sae("topk"), batches(4))
    assert "it ends with a larger k" in caplog.text
