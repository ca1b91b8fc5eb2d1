"""Training features, each in a run of the trainer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens.config import LanguageModelSAERunnerConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes import (
    TopKTrainingSAEConfig,
)
from sae_lens.training.features import (
    KSchedule,
    OptimizerChoice,
    PSchedule,
    Resampling,
    TargetL0,
    TrainingFeatures,
    WeightAverage,
)
from sae_lens.training.resampling import resample_dead_features
from sae_lens.training.trainer import SAETrainer
from tests.helpers import D_IN, D_SAE, activations, assert_close
from tests.training.runs_on_batches import N, make_sae, recorded, trainer


def test_k_falls():
    sae = make_sae(TopKTrainingSAEConfig, k=4)
    run = trainer(sae, TrainingFeatures(k_schedule=KSchedule(12, steps=0.5, cold_steps=2)))
    seen = recorded(run, lambda output: int((output.feature_acts.to_dense() != 0).sum(-1).max()))
    assert seen[:3] == [12, 12, 12]
    assert seen[8:] == [4] * 4
    assert sae.activation_fn.k == sae.cfg.k == 4


def test_p_falls():
    sae = make_sae(lp_norm=1.0)
    run = trainer(sae, {"p_schedule": {"end": 0.5, "first_step": 4, "steps": 4}})
    seen = recorded(run, lambda output: sae.cfg.lp_norm)
    assert seen == pytest.approx([1.0] * 5 + [0.875, 0.75, 0.625] + [0.5] * 4)


def test_the_result_is_the_average():
    plain, averaged = make_sae(), make_sae()
    history: list[Tensor] = []
    run = trainer(averaged, TrainingFeatures(weight_average=WeightAverage(0.5)), n_steps=4)
    recorded(run, lambda output: history.append(averaged.W_dec.detach().clone()))
    want = history[0]
    for weights in history[1:]:
        want = 0.5 * want + 0.5 * weights
    assert_close(averaged.W_dec, want)
    trainer(plain, None, n_steps=4).fit()
    assert_close(plain.W_dec, history[-1])


def test_accumulated_batches_are_one_larger_batch():
    one, four = make_sae(), make_sae()
    small = [activations(N, seed=i) for i in range(8)]
    large = [torch.cat(small[:4]), torch.cat(small[4:])]
    for sae, data, features in (
        (one, large, None),
        (four, small, {"gradient_accumulation_steps": 4}),
    ):
        cfg = SAETrainerConfig(
            total_training_samples=8 * N, train_batch_size_samples=len(data[0]), lr=1e-2,
            features=features,
        )  # fmt: skip
        SAETrainer(cfg, sae, iter(data)).fit()
    for name, value in one.state_dict().items():
        assert_close(four.state_dict()[name], value)


def test_batches_left_over_from_an_accumulation_count():
    def trained(n_steps: int, every: int) -> Any:
        features = {"gradient_accumulation_steps": every, "weight_average": {"decay": 0.5}}
        sae = make_sae()
        trainer(sae, features, n_steps=n_steps).fit()
        return sae

    untrained = make_sae()
    assert not torch.equal(trained(3, 5).W_dec, untrained.W_dec)  # fewer than one accumulation
    assert not torch.equal(trained(6, 4).W_dec, trained(4, 4).W_dec)


def test_a_training_goes_on_from_before_the_leftover_batches(tmp_path: Path):
    features = {"gradient_accumulation_steps": 4, "weight_average": {"decay": 0.5}}
    whole, first, rest = make_sae(), make_sae(), make_sae()
    trainer(whole, features, n_steps=12).fit()
    trainer(
        first, features, n_steps=6, checkpoint_path=str(tmp_path), save_final_checkpoint=True
    ).fit()
    resumed = trainer(rest, features, n_steps=12, checkpoint_path=str(tmp_path))
    resumed.resume(tmp_path / f"final_{6 * N}")
    resumed.fit()
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


def test_checkpoints_wait_for_an_accumulation_to_complete(tmp_path: Path):
    run = trainer(
        make_sae(),
        {"gradient_accumulation_steps": 4},
        n_checkpoints=5,
        checkpoint_path=str(tmp_path),
    )
    run.fit()
    steps = sorted(int(path.name) // N for path in tmp_path.iterdir() if path.name.isdigit())
    assert steps
    assert all(step % 4 == 0 for step in steps)


def test_checkpoints_by_logarithm(tmp_path: Path):
    run = trainer(
        make_sae(),
        {"checkpoint_spacing": "log"},
        16,
        n_checkpoints=4,
        checkpoint_path=str(tmp_path),
    )
    run.fit()
    steps = sorted(int(path.name) // N for path in tmp_path.iterdir() if path.name.isdigit())
    assert steps == [2, 4, 8]


def test_dead_features_start_anew():
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc[:10] = -100
    run = trainer(
        sae, TrainingFeatures(resampling=Resampling(every=4, until=1.0)), n_steps=4,
        dead_feature_window=2,
    )  # fmt: skip
    before = sae.W_dec[:10].detach().clone()
    run.fit()
    assert (sae.b_enc[:10] == 0).all()
    assert (sae.W_dec[:10] - before).norm(dim=-1).min() > 1e-2
    alive = sae.W_enc[:, 10:].norm(dim=0).mean()
    assert_close(sae.W_enc[:, :10].norm(dim=0), (0.2 * alive).expand(10), atol=1e-3)
    state = run.optimizer.state[sae.W_dec]
    assert not state["exp_avg"][:10].any()
    assert state["exp_avg"][10:].any()
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec[:10], sae.W_enc[:, :10].T)
    assert_close(cosine, torch.ones(10))


def test_resampling_waits_for_the_update_when_batches_add_up():
    rule = Resampling(every=5, until=0.5)
    steps = range(3, 40, 4)  # the last of each four
    assert [step for step in steps if rule.is_due(step, 40, n_steps=4)] == [7, 11, 15, 19]
    assert [step for step in range(40) if rule.is_due(step, 40)] == [4, 9, 14, 19]


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "skip_transcoder"])
def test_new_features_point_to_activations_with_a_large_loss(architecture: str):
    config = get_sae_training_class(architecture).config_class
    fields = {"d_out": 12} if "transcoder" in architecture else {}
    sae = make_sae(config, **fields)
    batch = activations(40, D_IN + fields.get("d_out", 0))
    with torch.no_grad():
        if architecture == "jumprelu":
            sae.threshold += 2
        sae.b_dec.normal_()
        x, target = sae.split_batch(batch)
        x[7] *= 30  # nothing else is worth a thought beside it
        if target is not x:
            target[7] *= 30
    dead = torch.arange(D_SAE) < 9
    optimizer = torch.optim.Adam(sae.parameters())
    output = sae.training_forward_pass(batch)
    output.loss.backward()
    optimizer.step()
    alive = sae.W_dec[~dead].norm(dim=-1).mean(), sae.W_enc[:, ~dead].norm(dim=0).mean()
    assert resample_dead_features(sae, optimizer, batch, output, dead, 0.25) == 9
    encoded = sae.process_sae_in(x[7:8])
    decoded = target[7:8] - sae.b_dec
    cosine = torch.nn.functional.cosine_similarity
    assert_close(cosine(sae.W_enc[:, dead].T, encoded), torch.ones(9))
    assert_close(cosine(sae.W_dec[dead], decoded), torch.ones(9))
    assert_close(sae.W_dec[dead].norm(dim=-1), alive[0].expand(9))
    assert_close(sae.W_enc[:, dead].norm(dim=0), (0.25 * alive[1]).expand(9))
    for name in ("b_enc", "b_gate", "b_mag", "r_mag"):
        if name in dict(sae.named_parameters()):
            assert not getattr(sae, name)[dead].any()
    if architecture == "jumprelu":  # one that has risen would keep the feature dead
        assert_close(sae.threshold[dead], torch.full((9,), sae.cfg.jumprelu_init_threshold))
        assert (sae.threshold[~dead] > 1).all()
    moments = optimizer.state[sae.W_enc]["exp_avg"]
    assert not moments[:, dead].any() and moments[:, ~dead].any()


def test_another_optimiser():
    choice = OptimizerChoice("torch.optim.AdamW", {"weight_decay": 0.1})
    run = trainer(make_sae(), TrainingFeatures(optimizer=choice))
    assert type(run.optimizer) is torch.optim.AdamW
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    run.fit()
    sgd = trainer(make_sae(), {"optimizer": {"path": "torch.optim.SGD"}})
    sgd.fit()
    ours = {"path": "sae_lens.training.sparse_adam.SparseAdam"}
    trainer(make_sae(), {"optimizer": ours}).fit()
    for path in ("torch.optim.Nothing", "nowhere.Adam", "Adam", "torch.nn.Linear"):
        with pytest.raises(ValueError, match=path.replace(".", r"\.")):
            trainer(make_sae(), {"optimizer": {"path": path}})


def test_clipping_is_as_configured():
    free, clipped = make_sae(), make_sae()
    sgd = {"optimizer": {"path": "torch.optim.SGD"}}
    start = free.W_dec.detach().clone()
    trainer(free, {**sgd, "max_gradient_norm": None}, n_steps=1, lr=1.0).fit()
    trainer(clipped, {**sgd, "max_gradient_norm": 0.01}, n_steps=1, lr=1.0).fit()
    moved = sum(
        (p - q).detach().pow(2).sum()
        for p, q in zip(clipped.parameters(), make_sae().parameters(), strict=True)
    )
    assert float(moved.sqrt()) == pytest.approx(0.01, rel=1e-2)
    assert (free.W_dec - start).norm() > 0.1


def test_features_are_part_of_the_state():
    features = TrainingFeatures(
        target_l0=TargetL0(5.0), weight_average=WeightAverage(0.9), p_schedule=PSchedule(0.5)
    )
    whole = make_sae()
    run = trainer(whole, features)
    run.fit()
    first = make_sae()
    half = trainer(first, features)
    half.cfg.total_training_samples = 6 * N
    half.source.prepare()
    for step in range(6):
        half._train_step(first, activations(N, seed=step))
        half.n_training_steps += 1
    second = copy.deepcopy(first)
    rest = trainer(second, features)
    rest.load_state_dict(copy.deepcopy(half.state_dict()))
    for step in range(6, 12):
        rest._train_step(second, activations(N, seed=step))
        rest.n_training_steps += 1
    rest._finish_weights()
    for name, value in whole.state_dict().items():
        assert_close(second.state_dict()[name], value)


def test_configs_keep_features_as_plain_data(tmp_path: Path):
    features = TrainingFeatures(target_l0=TargetL0(5.0), gradient_accumulation_steps=2)
    cfg = LanguageModelSAERunnerConfig(
        d_in=8, features=features, log_to_wandb=False, checkpoint_path=str(tmp_path), verbose=False
    )
    json.dumps(cfg.features)
    again = LanguageModelSAERunnerConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert TrainingFeatures.of(again.features) == features
    assert cfg.to_sae_trainer_config().features == cfg.features
    assert LanguageModelSAERunnerConfig(d_in=8, log_to_wandb=False, verbose=False).features is None
