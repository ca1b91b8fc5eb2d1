"""Learning rates and weights that change while a trainer works."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from sae_lens.saes import (
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.training.features import LearningRateSchedule, TrainingFeatures, WeightSchedule
from sae_lens.training.loss_schedules import LearningRateFactor, LearningRateName
from tests.helpers import assert_close
from tests.training.runs_on_batches import N, make_sae, recorded, trainer


@pytest.mark.parametrize("name", get_args(LearningRateName))
def test_the_six_learning_rates(name: Any):
    warms_up = name not in ("constant", "cosineannealing")
    schedule = LearningRateSchedule(
        name,
        warm_up_steps=0.25 if warms_up else 0,
        cool_down_steps=4 if name == "constantwithwarmup" else 0,
        end_ratio=0.1,
    )
    run = trainer(make_sae(), TrainingFeatures(lr_schedule=schedule), lr=0.02)
    seen = [run.optimizer.param_groups[0]["lr"]]
    seen += recorded(run, lambda output: run.optimizer.param_groups[0]["lr"])
    cool_down = 4 if name == "constantwithwarmup" else 0
    factor = LearningRateFactor(name, 12, 3 if warms_up else 0, cool_down, 0.1)
    assert seen[:12] == pytest.approx([0.02 * factor(step) for step in range(12)])


@pytest.mark.parametrize(
    "fields",
    [
        {"features": {"lr_schedule": {"warm_up_steps": 4, "cool_down_steps": 4}}},
        {"features": {"lr_schedule": {"name": "cosineannealing"}}},
        {"features": {}, "lr_warm_up_steps": 4, "lr_decay_steps": 4},
        {"features": {}, "lr_scheduler_name": "cosineannealing", "lr_end": 1e-4},
        {"features": {"optimizer": {"path": "torch.optim.AdamW"}}},
    ],
)
def test_thresholds_have_a_rate_of_their_own(fields: dict[str, Any]):
    sae = make_sae(JumpReLUTrainingSAEConfig)
    features = {**fields.pop("features"), "jumprelu_lr_factor": 0.25}
    run = trainer(sae, features, **fields)
    groups = {group["name"]: group for group in run.optimizer.param_groups}
    assert groups["jumprelu"]["params"] == [sae._parameters["threshold"]]
    assert len(groups["others"]["params"]) == 4

    def rates(output: Any) -> tuple[float, float]:
        return groups["others"]["lr"], groups["jumprelu"]["lr"]

    for other, threshold in [rates(None), *recorded(run, rates)]:
        assert threshold == pytest.approx(0.25 * other)


def test_a_schedule_can_be_made_anew_for_another_length():
    features = {"lr_schedule": {"cool_down_steps": 0.5}, "jumprelu_lr_factor": 0.5}
    run = trainer(make_sae(JumpReLUTrainingSAEConfig), features)
    for _ in range(6):
        run._advance_schedules()
    run.n_training_steps = 6
    run.cfg.total_training_samples = 24 * N
    run.remake_lr_scheduler()
    want = LearningRateFactor("constantwithwarmup", 24, 0, 12, 1 / 32)
    seen = []
    for _ in range(6, 24):
        seen.append([group["lr"] for group in run.optimizer.param_groups])
        run._advance_schedules()
    assert_close(
        torch.tensor(seen),
        torch.tensor([[1e-2 * want(s), 0.5e-2 * want(s)] for s in range(6, 24)]),
    )


@pytest.mark.parametrize(
    ("cls", "fields", "name"),
    [
        (StandardTrainingSAEConfig, {"l1_coefficient": 0.5}, "l1_loss"),
        (GatedTrainingSAEConfig, {"l1_coefficient": 0.5}, "l1_loss"),
        (JumpReLUTrainingSAEConfig, {"l0_coefficient": 0.5}, "l0_loss"),
    ],
)
def test_the_sparsity_coefficient_follows_its_schedule(cls: Any, fields: Any, name: str):
    schedule = WeightSchedule(start=2.0, end=0.5, first_step=2, steps=4)
    features = TrainingFeatures(weight_schedules={"sparsity": schedule})
    scheduled, plain = make_sae(cls, **fields), make_sae(cls, **fields)
    kept = {"lr": 0.0}  # with weights that stay, losses differ by the coefficient alone
    a = recorded(trainer(scheduled, features, **kept), lambda output: output.losses[name].item())
    b = recorded(trainer(plain, None, **kept), lambda output: output.losses[name].item())
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    assert ratios == pytest.approx([2, 2, 2, 1.625, 1.25, 0.875, *[0.5] * 6], rel=1e-4)


@pytest.mark.parametrize(
    ("cls", "fields", "weight", "name"),
    [
        (
            TopKTrainingSAEConfig,
            {"k": 4, "aux_loss_coefficient": 0.5},
            "auxiliary",
            "auxiliary_reconstruction_loss",
        ),
        (JumpReLUTrainingSAEConfig, {"pre_act_loss_coefficient": 0.5}, "pre_act", "pre_act_loss"),
    ],
)
def test_other_weights_follow_theirs_and_the_config_keeps_its_own(
    cls: Any, fields: dict[str, Any], weight: str, name: str
):
    features = {"weight_schedules": {weight: {"start": 0.0, "end": 1.0, "kind": "exponential"}}}
    scheduled, plain = make_sae(cls, **fields), make_sae(cls, **fields)
    with torch.no_grad():
        for sae in (scheduled, plain):
            sae.b_enc[:20] = -50
    kept = {"lr": 0.0, "dead_feature_window": 0}
    a = recorded(trainer(scheduled, features, **kept), lambda output: output.losses[name].item())
    b = recorded(trainer(plain, None, **kept), lambda output: output.losses[name].item())
    assert a[1:4] != b[1:4]
    share = torch.expm1(-3.0 * torch.arange(12) / 12) / torch.expm1(torch.tensor(-3.0))
    assert a == pytest.approx([x * float(s) for x, s in zip(b, share, strict=True)], rel=1e-4)
    assert b[5] > 0
    assert getattr(scheduled.cfg, "aux_loss_coefficient", 0.5) == 0.5
    assert getattr(scheduled.cfg, "pre_act_loss_coefficient", 0.5) == 0.5


def test_p_falls_to_the_end_of_the_training_unless_told_otherwise():
    sae = make_sae(GatedTrainingSAEConfig)
    run = trainer(sae, {"p_schedule": {"end": 0.4, "first_step": 0.5}})
    seen = recorded(run, lambda output: sae.cfg.lp_norm)
    assert seen == pytest.approx([1.0] * 7 + [0.9, 0.8, 0.7, 0.6, 0.5])


def test_the_weight_of_aux_k_for_any_architecture_follows_a_schedule():
    features = {"aux_k": {"coefficient": 0.5}}
    schedule = {"weight_schedules": {"auxiliary": {"start": 0.0, "end": 2.0, "steps": 4}}}
    scheduled, plain = make_sae(), make_sae()
    with torch.no_grad():
        for sae in (scheduled, plain):
            sae.b_enc[:20] = -0.2
    kept = {"lr": 0.0, "dead_feature_window": 0}

    def read(output: Any) -> float:
        return output.losses["auxk_loss"].item()

    a = recorded(trainer(scheduled, {**features, **schedule}, **kept), read)
    b = recorded(trainer(plain, features, **kept), read)
    shares = [0, 0.5, 1, 1.5, *[2] * 8]
    assert a == pytest.approx([x * y for x, y in zip(b, shares, strict=True)], rel=1e-5)
    assert b[3] > 0


@pytest.mark.parametrize(
    ("cls", "field"),
    [(StandardTrainingSAEConfig, "l1"), (JumpReLUTrainingSAEConfig, "l0")],
)
def test_fields_about_steps_take_shares(cls: Any, field: str):
    by_number = trainer(
        make_sae(cls, **{f"{field}_warm_up_steps": 6}), None, lr_warm_up_steps=3, lr_decay_steps=4
    )
    by_share = trainer(
        make_sae(cls, **{f"{field}_warm_up_steps": 0.5}),
        None,
        lr_warm_up_steps=0.25,
        lr_decay_steps=0.34,
    )

    def read(run: Any) -> Any:
        return lambda output: (run.optimizer.param_groups[0]["lr"], run.current_l1_coefficient)

    assert recorded(by_share, read(by_share)) == recorded(by_number, read(by_number))
