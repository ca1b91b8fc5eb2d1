from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig, SAETrainerConfig
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes import (
    SAE,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepOutput,
)
from sae_lens.training import interruptions
from sae_lens.training.loggers import Histogram, NullLogger
from sae_lens.training.nonfinite import NonFiniteLossError
from sae_lens.training.sae_trainer import (
    FINETUNING_PARAMETERS,
    SAETrainer,
    _log_feature_sparsity,
    _unwrap_item,
    _update_sae_lens_training_version,
)
from tests.helpers import golden_cases, load_golden, tensors_under

D_IN, D_SAE, BATCH = 8, 24, 16


class Feed:
    """A store that serves given batches, or random ones."""

    def __init__(
        self, batches: Tensor | None = None, scale: float = 1.0, factor: float | None = None
    ):
        self.batches = batches
        self.scale = scale
        self.factor_to_find = factor
        self.estimated_norm_scaling_factor: float | None = None
        self.generator = torch.Generator().manual_seed(0)
        self.n_served = 0

    def set_norm_scaling_factor_if_needed(self) -> None:
        self.estimated_norm_scaling_factor = self.factor_to_find

    def next_batch(self) -> Tensor:
        self.n_served += 1
        if self.batches is not None:
            return self.batches[self.n_served - 1][:, None, :]
        batch = torch.randn(BATCH, 1, D_IN, generator=self.generator) * self.scale
        return batch * (self.estimated_norm_scaling_factor or 1.0)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class ListLogger(NullLogger):
    is_active = True

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def log(self, metrics: Any, step: int) -> None:
        self.logged.append((step, dict(metrics)))


def config(**fields: Any) -> LanguageModelSAERunnerConfig:
    architecture = fields.get("architecture", "standard")
    values: dict[str, Any] = {
        "d_in": D_IN, "d_sae": D_SAE, "train_batch_size_tokens": BATCH,
        "training_tokens": BATCH * 20, "lr": 1e-2, "log_to_wandb": False, "verbose": False,
        "b_dec_init_method": "zeros", "checkpoint_path": "unused",
    }  # fmt: skip
    if architecture == "topk":
        values["activation_fn_kwargs"] = {"k": 4}
    return LanguageModelSAERunnerConfig(**{**values, **fields})


def make_trainer(
    cfg: Any = None, feed: Feed | None = None, logger: Any = None, **fields: Any
) -> tuple[SAETrainer, list[str]]:
    cfg = cfg or config(**fields)
    torch.manual_seed(0)
    sae = TrainingSAE(cfg.training_sae_config())
    saved: list[str] = []

    def save(trainer: Any, checkpoint_name: str, wandb_aliases: Any = None) -> None:
        saved.append(checkpoint_name)

    extra = {} if logger is None else {"logger": logger}
    return SAETrainer(None, sae, feed or Feed(), save, cfg, **extra), saved


def batches(n: int = 1000, scale: float = 1.0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        yield torch.randn(BATCH, D_IN, generator=generator) * scale


# -- whole runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("run"), ids=lambda path: path.stem)
def test_a_run_equals_the_reference(case: Path) -> None:
    description, tensors = load_golden(case)
    cfg = LanguageModelSAERunnerConfig(**description["fields"])
    sae = TrainingSAE(TrainingSAEConfig.from_dict(cfg.get_training_sae_cfg_dict()))
    sae.load_state_dict(tensors_under(tensors, "w/"))
    names: list[str] = []

    def save(trainer: Any, checkpoint_name: str, wandb_aliases: Any = None) -> None:
        names.append(checkpoint_name)

    trainer = SAETrainer(None, sae, Feed(tensors["in/batches"]), save, cfg)
    step = trainer._train_step
    losses, rates, coefficients = [], [], []

    def spy(**arguments: Any) -> TrainStepOutput:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        coefficients.append(trainer.current_l1_coefficient)
        output = step(**arguments)
        losses.append(output.loss.item())
        return output

    trainer._train_step = spy  # type: ignore[method-assign]
    assert trainer.fit() is sae
    close = {"atol": 1e-3, "rtol": 1e-3}
    torch.testing.assert_close(torch.tensor(losses), tensors["out/losses"].float(), **close)
    torch.testing.assert_close(torch.tensor(rates), tensors["out/lr"].float())
    torch.testing.assert_close(torch.tensor(coefficients), tensors["out/coefficient"].float())
    assert names == description["checkpoint_names"]
    for name, want in tensors_under(tensors, "out/final/").items():
        torch.testing.assert_close(sae.state_dict()[name], want, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_training_lowers_the_loss(architecture: str) -> None:
    fixed = torch.randn(BATCH, D_IN)
    trainer, _ = make_trainer(architecture=architecture, l1_coefficient=1e-3)
    losses = [trainer._train_step(trainer.sae, fixed).losses["mse_loss"].item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "sae_config",
    [
        TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4),
        JumpReLUTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l0_coefficient=0.5, l0_warm_up_steps=4),
        StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, l1_coefficient=0.1),
    ],
    ids=lambda c: str(c.architecture),
)
def test_any_iterator_trains_a_config_of_the_later_form(sae_config: Any) -> None:
    sae = TrainingSAE(sae_config)
    cfg = SAETrainerConfig(total_training_samples=BATCH * 10, train_batch_size_samples=BATCH)
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=batches())
    before = sae.W_dec.detach().clone()
    seen = []
    step = trainer._forward

    def spy(*arguments: Any) -> TrainStepOutput:
        seen.append(trainer.current_l1_coefficient)
        return step(*arguments)

    trainer._forward = spy  # type: ignore[method-assign]
    assert trainer.fit() is sae
    assert not torch.equal(before, sae.W_dec)
    assert trainer.n_training_samples == BATCH * 10
    if sae_config.architecture == "jumprelu":
        assert seen[:6] == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    if sae_config.architecture == "topk":
        assert trainer.coefficient_schedulers == {}
    assert isinstance(trainer.optimizer, torch.optim.Adam)


def test_both_forms_are_told_apart_by_position_and_by_keyword() -> None:
    sae = TrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
    cfg = SAETrainerConfig(total_training_samples=BATCH, train_batch_size_samples=BATCH)

    def evaluate(sae: Any, data_provider: Any, scaler: Any) -> dict[str, Any]:
        return {}

    for trainer in (
        SAETrainer(cfg, sae, batches(), evaluate),
        SAETrainer(cfg, sae, data_provider=batches(), evaluator=evaluate),
        SAETrainer(cfg=config().to_sae_trainer_config(), sae=sae, data_provider=batches(),
                   evaluator=evaluate),
    ):  # fmt: skip
        assert trainer.evaluator is evaluate
        assert trainer.sae is sae
        trainer.fit()
    runner_cfg, feed = config(), Feed()
    own = TrainingSAE(runner_cfg.training_sae_config())
    by_keyword = SAETrainer(
        model=None, sae=own, activation_store=feed, save_checkpoint_fn=print, cfg=runner_cfg
    )
    assert by_keyword.activations_store is feed
    assert by_keyword.save_checkpoint is print
    # a stand-in for a model has every attribute that it is asked for
    assert SAETrainer(MagicMock(), own, feed, print, runner_cfg).cfg is runner_cfg
    with pytest.raises(TypeError):
        SAETrainer(cfg, sae)


def test_a_source_that_ends_early_ends_the_training(caplog: pytest.LogCaptureFixture) -> None:
    sae = TrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
    cfg = SAETrainerConfig(total_training_samples=BATCH * 10, train_batch_size_samples=BATCH)
    trainer = SAETrainer(cfg, sae, batches(3))
    trainer.fit()
    assert trainer.n_training_samples == 3 * BATCH
    assert "ended after 48 of 160" in caplog.text


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_trainer_without_a_runner_saves_where_its_config_says(tmp_path: Path) -> None:
    sae = TrainingSAE(StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    calls: list[Any] = []

    def also(checkpoint_path: Any) -> None:
        calls.append(checkpoint_path)

    cfg = SAETrainerConfig(
        total_training_samples=BATCH * 8, train_batch_size_samples=BATCH, n_checkpoints=2,
        checkpoint_path=str(tmp_path / "c"), save_final_checkpoint=True,
    )  # fmt: skip
    SAETrainer(cfg, sae, batches(), save_checkpoint_fn=also).fit()
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["80", "final_128", "latest"]  # it can be gone on from
    assert calls == [tmp_path / "c" / "80", tmp_path / "c" / "final_128"]
    x = torch.randn(3, D_IN)
    loaded = SAE.load_from_disk(tmp_path / "c" / "final_128")
    torch.testing.assert_close(loaded.eval()(x), sae.eval()(x))


def test_a_runner_config_may_be_the_config_of_the_sae(tmp_path: Path) -> None:
    cfg = config(
        checkpoint_path=str(tmp_path), architecture="gated", wandb_id="run",
        model_from_pretrained_kwargs={},
    )  # fmt: skip
    sae = TrainingSAE(cfg)  # type: ignore[arg-type]
    feed = Feed()
    SAETrainer(None, sae, feed, SAETrainingRunner.save_checkpoint, cfg).fit()
    loaded = SAE.load_from_disk(tmp_path / "run" / "final_320").eval()
    x = torch.randn(3, D_IN)
    torch.testing.assert_close(loaded(x), sae.eval()(x))


def test_a_store_may_be_the_source_of_the_second_form() -> None:
    feed = Feed(scale=4.0, factor=0.25)
    sae = TrainingSAE(StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    cfg = SAETrainerConfig(total_training_samples=BATCH * 8, train_batch_size_samples=BATCH)
    SAETrainer(cfg, sae, feed).fit()
    assert feed.n_served == 8
    assert feed.estimated_norm_scaling_factor is None


def test_nothing_is_written_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sae = TrainingSAE(StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    cfg = SAETrainerConfig(
        total_training_samples=BATCH * 8, train_batch_size_samples=BATCH, n_checkpoints=2
    )
    SAETrainer(cfg, sae, batches()).fit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_norm_factor_is_folded_once(architecture: str, normalize: bool) -> None:
    feed = Feed(scale=4.0, factor=0.25)
    trainer, _ = make_trainer(
        feed=feed, architecture=architecture, normalize_sae_decoder=normalize,
        normalize_activations="expected_average_only_in",
    )  # fmt: skip
    kept: dict[str, Any] = {}

    def before_saving(trainer: Any, checkpoint_name: str, wandb_aliases: Any = None) -> None:
        kept.update(aliases=wandb_aliases, kind=trainer.sae.cfg.normalize_activations)

    trainer.save_checkpoint = before_saving
    finish = trainer._finish_weights

    def remember() -> None:
        if normalize:
            trainer.sae.set_decoder_norm_to_unit_norm()
        raw = torch.randn(5, D_IN) * 4
        with torch.no_grad():
            kept.update(raw=raw, scaled=trainer.sae.eval()(raw * 0.25) / 0.25)
        finish()

    trainer._finish_weights = remember  # type: ignore[method-assign]
    sae = trainer.fit().eval()
    torch.testing.assert_close(sae(kept["raw"]), kept["scaled"], atol=1e-4, rtol=1e-4)
    assert feed.estimated_norm_scaling_factor is None
    assert kept["kind"] == "none"
    assert kept["aliases"] == ["final_model"]


# -- one step -------------------------------------------------------------------------------------


def test_the_decoder_gradient_along_its_rows_is_removed_before_the_update() -> None:
    trainer, _ = make_trainer(normalize_sae_decoder=True)
    seen: dict[str, Tensor] = {}

    def before_the_update(*_: Any) -> None:
        assert trainer.sae.W_dec.grad is not None
        seen["parallel"] = (trainer.sae.W_dec.grad * trainer.sae.W_dec).sum(-1)
        seen["size"] = trainer.sae.W_dec.grad.norm()

    trainer.optimizer.register_step_pre_hook(before_the_update)
    trainer._train_step(trainer.sae, torch.randn(BATCH, D_IN))
    assert seen["size"] > 0.01
    assert seen["parallel"].abs().max() < 1e-5


def fake_pass(sae: TrainingSAE, feature_acts: Tensor, **losses: Any) -> Any:
    def forward(*_: Any, **__: Any) -> TrainStepOutput:
        return TrainStepOutput(
            sae_in=torch.tensor([[-1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]),
            sae_out=torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.5, 1.0]]),
            feature_acts=feature_acts,
            hidden_pre=feature_acts,
            loss=torch.tensor(0.5, requires_grad=True),
            losses=losses,
        )

    return forward


@pytest.mark.parametrize("sparse", [False, True])
def test_statistics_follow_the_activations(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = make_trainer(dead_feature_window=1)
    acts = torch.zeros(10, D_SAE)
    acts[:, :12] = 1
    acts[3:, 5] = 0
    given = acts.to_sparse() if sparse else acts
    monkeypatch.setattr(trainer.sae, "training_forward_pass", fake_pass(trainer.sae, given))
    for _ in range(2):
        assert trainer._train_step(trainer.sae, torch.randn(10, D_IN)).feature_acts is given
    assert trainer.n_frac_active_tokens == 20
    assert trainer.act_freq_scores[[0, 5, 12]].tolist() == [20, 6, 0]
    assert trainer.n_forward_passes_since_fired[[0, 12]].tolist() == [0, 2]
    assert trainer.dead_neurons.sum() == 12
    assert trainer.feature_sparsity[[0, 5, 12]].tolist() == pytest.approx([1.0, 0.3, 0.0])
    assert trainer.log_feature_sparsity[12].item() == pytest.approx(-10)
    trainer._reset_running_sparsity_stats()
    assert trainer.feature_sparsity.tolist() == [0.0] * D_SAE
    assert trainer.dead_neurons.sum() == 12


def test_the_mask_of_dead_features_is_that_before_the_batch() -> None:
    trainer, _ = make_trainer(dead_feature_window=2)
    masks = []
    real = trainer.sae.training_forward_pass

    def spy(**arguments: Any) -> TrainStepOutput:
        masks.append(int(arguments["dead_neuron_mask"].sum()))
        return real(**arguments)

    trainer.sae.training_forward_pass = spy  # type: ignore[method-assign]
    with torch.no_grad():
        trainer.sae.b_enc[0] = -1e6
    for _ in range(5):
        trainer._train_step(trainer.sae, torch.randn(64, D_IN))
    assert masks[:4] == [0, 0, 0, 1]  # dead after three silent steps


def test_the_window_is_reset_and_logged() -> None:
    logger = ListLogger()
    trainer, _ = make_trainer(
        logger=logger, feature_sampling_window=5, wandb_log_frequency=1000,
        dead_feature_threshold=2.0,
    )  # fmt: skip
    trainer.fit()
    steps = [step for step, values in logger.logged if "sparsity/below_1e-5" in values]
    assert steps == [4, 9, 14, 19]
    values = dict(logger.logged)[4]
    assert isinstance(values["plots/feature_density_line_chart"], Histogram)
    assert values["sparsity/below_dead_feature_threshold"] == D_SAE
    assert values["sparsity/below_1e-6"] <= values["sparsity/below_1e-5"]
    assert trainer.n_frac_active_tokens == BATCH


# -- logging --------------------------------------------------------------------------------------


def test_the_log_of_a_step_by_hand() -> None:
    trainer, _ = make_trainer(l1_coefficient=2.0, lr=2e-4)
    acts = torch.tensor([[0.0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 1, 1]])
    output = fake_pass(trainer.sae, acts, mse_loss=0.25, l1_loss=torch.tensor(0.1))()
    log = trainer._build_train_step_log_dict(output=output, n_training_tokens=123)
    per_token = torch.tensor([1 - 1 / 2, 1.0, 1 - 0.25])
    std = pytest.approx(per_token.std().item())
    assert log == {
        "losses/overall_loss": 0.5,
        "losses/mse_loss": 0.25,
        "losses/l1_loss": pytest.approx(0.05),
        "losses/raw_l1_loss": pytest.approx(0.1),
        "metrics/explained_variance": pytest.approx(1 - (1.25 / 3) / (4 / 3)),
        "metrics/explained_variance_legacy": pytest.approx(per_token.mean().item()),
        "metrics/explained_variance_legacy_std": std,
        "metrics/explained_variance_std": std,
        "metrics/l0": 2.0,
        "sparsity/mean_passes_since_fired": 0.0,
        "sparsity/dead_features": 0,
        "details/current_learning_rate": 2e-4,
        "details/current_l1_coefficient": 2.0,
        "details/n_training_tokens": 123,
    }


def test_the_logged_l1_loss_is_divided_by_the_coefficient_it_was_made_with() -> None:
    logger = ListLogger()
    trainer, _ = make_trainer(
        logger=logger, wandb_log_frequency=1, l1_warm_up_steps=4, l1_coefficient=0.8,
        eval_every_n_wandb_logs=1000, training_tokens=BATCH * 4,
    )  # fmt: skip
    outputs = []
    real = trainer._train_step

    def spy(**arguments: Any) -> TrainStepOutput:
        outputs.append(real(**arguments))
        return outputs[-1]

    trainer._train_step = spy  # type: ignore[method-assign]
    trainer.fit()
    first, second = logger.logged[0][1], logger.logged[1][1]
    assert first["losses/l1_loss"] == first["losses/raw_l1_loss"] == 0.0
    raw = outputs[1].losses["l1_loss"].item()
    assert second["losses/l1_loss"] == pytest.approx(raw / 0.2)
    assert [step for step, _ in logger.logged] == [0, 1, 2, 3]


def test_evaluations_are_logged_with_the_weights_and_do_not_touch_the_random_numbers() -> None:
    def evaluate(sae: Any, data_provider: Any, scaler: Any) -> dict[str, Any]:
        assert not sae.training
        assert scaler.scaling_factor is None
        torch.randn(100)
        return {"group": {"x": 1.0}}

    finals = []
    for evaluator in (evaluate, None):
        logger = ListLogger()
        trainer, _ = make_trainer(
            logger=logger, wandb_log_frequency=2, eval_every_n_wandb_logs=3, noise_scale=0.1
        )
        trainer.evaluator = evaluator
        finals.append(trainer.fit().W_dec.detach().clone())
        evaluations = {step: values for step, values in logger.logged if "group" in values}
        assert list(evaluations) == ([5, 11, 17] if evaluator else [])
        for values in evaluations.values():
            assert values["group"] == {"x": 1.0}
            assert {"weights/W_dec_norms", "weights/b_e"} < set(values)
        assert trainer.sae.training
    assert torch.equal(*finals)


def test_nothing_is_computed_for_the_logs_when_nothing_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, _ = make_trainer(wandb_log_frequency=1)
    monkeypatch.setattr(trainer, "_build_train_step_log_dict", None)
    trainer.fit()


def test_small_helpers() -> None:
    assert _unwrap_item(0.5) == _unwrap_item(torch.tensor(0.5)) == 0.5
    logs = _log_feature_sparsity(torch.tensor([0.1, 0.0]))
    assert logs.tolist() == pytest.approx([-1, -10])
    half = _log_feature_sparsity(torch.tensor([0.0], dtype=torch.float16))
    assert half.tolist() == pytest.approx([-10])
    trainer, _ = make_trainer()
    trainer.sae.cfg.sae_lens_training_version = None
    _update_sae_lens_training_version(trainer.sae)
    assert isinstance(trainer.sae.cfg.sae_lens_training_version, str)


# -- fine-tuning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["scale", "decoder", "unrotated_decoder", None])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_the_finetuning_phase_moves_its_parameters_alone(
    method: str | None, architecture: str
) -> None:
    trainer, _ = make_trainer(
        architecture=architecture, finetuning_method=method, training_tokens=BATCH * 4,
        finetuning_tokens=BATCH * 4, apply_b_dec_to_input=False, normalize_sae_decoder=False,
        adam_beta1=0.9,
    )  # fmt: skip
    at_start: dict[str, Tensor] = {}
    real = trainer._begin_finetuning_if_needed

    def spy() -> None:
        real()
        if trainer.started_fine_tuning and not at_start:
            at_start.update({n: p.detach().clone() for n, p in trainer.sae.named_parameters()})

    trainer._begin_finetuning_if_needed = spy  # type: ignore[method-assign]
    trainer.fit()
    moved = {
        name
        for name, parameter in trainer.sae.named_parameters()
        if not torch.equal(parameter, at_start[name])
    }
    if method is None:
        assert not trainer.finetuning
        assert "W_enc" in moved
    else:
        assert trainer.finetuning
        assert moved == set(FINETUNING_PARAMETERS[method]) - {"scaling_factor"}


def test_an_sae_without_a_scaling_factor_gets_one_to_finetune() -> None:
    cfg = config(finetuning_method="scale", finetuning_tokens=BATCH * 2)
    plain = TrainingSAE(config().training_sae_config())
    trainer = SAETrainer(None, plain, Feed(), lambda **_: None, cfg)
    assert plain.cfg.finetuning_scaling_factor
    trainer.fit()
    assert not torch.equal(plain.finetuning_scaling_factor, torch.ones(D_SAE))


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_stop_the_run_after_a_checkpoint(bad: float) -> None:
    given = torch.randn(20, BATCH, D_IN)
    given[7, 3, 2] = bad
    trainer, saved = make_trainer(feed=Feed(given))
    with pytest.raises(NonFiniteLossError, match="step 7.*not finite either"):
        trainer.fit()
    assert saved == [str(7 * BATCH)]  # the last whole step
    assert all(torch.isfinite(p).all() for p in trainer.sae.parameters())


def test_away_from_the_cpu_the_weights_stay_those_before_the_bad_step() -> None:
    given = torch.randn(20, BATCH, D_IN)
    given[7] = math.nan
    trainer, saved = make_trainer(feed=Feed(given))
    trainer._nonfinite._looks_at_once = False
    weights = []
    real = trainer._checkpoint_if_needed

    def spy() -> None:
        weights.append(trainer.sae.W_enc.detach().clone())
        real()

    trainer._checkpoint_if_needed = spy  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match="step 7"):
        trainer.fit()
    assert len(weights) == 20  # it was noticed at the end only
    assert torch.equal(weights[6], trainer.sae.W_enc)
    assert not torch.equal(weights[5], weights[6])
    assert len(saved) == 1


def test_a_stop_is_put_off_until_the_step_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = make_trainer()
    assert trainer.request_stop(KeyboardInterrupt()) is False  # not running
    real = trainer._train_step

    def spy(**arguments: Any) -> TrainStepOutput:
        if trainer.n_training_steps == 3:
            assert trainer.request_stop(InterruptedError("please")) is True
            assert trainer.request_stop(InterruptedError("twice")) is True  # taken for the same
            monkeypatch.setattr(interruptions, "SAME_REQUEST_SECONDS", 0)
            assert trainer.request_stop(InterruptedError("now")) is False
        return real(**arguments)

    trainer._train_step = spy  # type: ignore[method-assign]
    with pytest.raises(InterruptedError, match="please"):
        trainer.fit()
    assert trainer.n_training_steps == 4
    assert trainer.n_training_tokens == 4 * BATCH


def test_the_config_may_ask_for_wandb_later(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    logged: list[int] = []
    monkeypatch.setattr(wandb, "log", lambda values, step: logged.append(step))
    monkeypatch.setattr(wandb, "Histogram", lambda *_, **__: None)
    trainer, _ = make_trainer(wandb_log_frequency=1, eval_every_n_wandb_logs=1000)
    real = trainer._train_step

    def spy(**arguments: Any) -> TrainStepOutput:
        if trainer.n_training_steps in (5, 9):
            trainer.cfg.log_to_wandb = not trainer.cfg.log_to_wandb
        return real(**arguments)

    trainer._train_step = spy  # type: ignore[method-assign]
    assert not trainer.logger.is_active
    trainer.fit()
    assert logged == [5, 6, 7, 8]
    passed, _ = make_trainer(logger=NullLogger(), log_to_wandb=True)
    assert not passed.logger.is_active


def test_a_keyboard_interrupt_from_elsewhere_while_data_are_drawn_saves_nothing() -> None:
    """Nobody knows in the middle of what it came."""
    trainer, saved = make_trainer()
    real, drawn = trainer.source.next_batch, []

    def next_batch() -> torch.Tensor:
        drawn.append(None)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return real()

    trainer.source.next_batch = next_batch  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert not trainer.is_whole
    assert saved == []


# -- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_a_trainer_goes_on_from_its_state(architecture: str) -> None:
    fields = {
        "architecture": architecture, "lr_warm_up_steps": 3, "lr_decay_steps": 6,
        "l1_warm_up_steps": 12, "n_checkpoints": 4, "feature_sampling_window": 7,
        "adam_beta1": 0.9, "noise_scale": 0.0,
    }  # fmt: skip
    given = torch.randn(20, BATCH, D_IN)
    whole, _ = make_trainer(feed=Feed(given), **fields)
    whole.fit()

    first, _ = make_trainer(feed=Feed(given), **fields)
    real = first._train_step

    def stop_after_ten(**arguments: Any) -> TrainStepOutput:
        if first.n_training_steps == 9:
            first.request_stop(InterruptedError())
        return real(**arguments)

    first._train_step = stop_after_ten  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        first.fit()
    state, weights = first.state_dict(), first.sae.state_dict()

    second, _ = make_trainer(feed=Feed(given[10:]), **fields)
    second.sae.load_state_dict(weights)
    second.load_state_dict(state)
    second.fit()
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(second.sae.state_dict()[name], value), name
    assert torch.equal(second.act_freq_scores, whole.act_freq_scores)
    assert second.checkpoint_thresholds == whole.checkpoint_thresholds == []


def test_autocast_trains_in_bfloat16() -> None:
    # autocast knows kinds of devices, not numbered ones
    trainer, _ = make_trainer(autocast=True, device="cpu:0")
    output = trainer._train_step(trainer.sae, torch.randn(BATCH, D_IN))
    # with biases of zero every pre-activation is a product that came out in bfloat16
    assert torch.equal(output.hidden_pre, output.hidden_pre.bfloat16().float())
    assert trainer.sae.W_enc.dtype == torch.float32


def test_the_logging_config_of_the_second_form_is_used(tmp_path: Path) -> None:
    sae = TrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
    path = tmp_path / "log.jsonl"
    cfg = SAETrainerConfig(
        total_training_samples=BATCH * 4, train_batch_size_samples=BATCH,
        logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=2, log_to_jsonl=str(path)),
    )  # fmt: skip
    SAETrainer(cfg, sae, batches()).fit()
    assert path.read_text().count("losses/mse_loss") == 2


@pytest.mark.parametrize("normalizes_decoder", [False, True])
def test_weights_are_copied_at_the_end_only_if_they_change_there(normalizes_decoder: bool) -> None:
    """Those of a large SAE may not fit into memory twice."""
    trainer, _ = make_trainer(config(normalize_sae_decoder=normalizes_decoder))
    trainer.source.require_resumable = lambda: None  # type: ignore[method-assign]
    trainer.fit()
    state = trainer.resume_state()
    assert state is not None
    kept = state["sae"]["W_dec"].data_ptr()
    assert (kept == trainer.sae.W_dec.data_ptr()) == (not normalizes_decoder)


def test_a_trainer_that_is_let_go_holds_no_memory() -> None:
    """Without waiting for the collector of cycles: SAE, gradients and moments are large."""
    gc.disable()
    try:
        trainer, _ = make_trainer()
        sae = weakref.ref(trainer.sae)
        trainer.fit()
        del trainer
        assert sae() is None
    finally:
        gc.enable()
