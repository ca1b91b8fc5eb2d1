"""Averaged weights: what checkpoints and the result hold, and what a run goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_lens.saes import TrainingSAE
from sae_lens.training.resume_files import read_resume_files
from tests.helpers import assert_close
from tests.runs import assert_same_weights, make_runner, run_config, train
from tests.training.runs_on_batches import make_sae, trainer

FEATURES = {"features": {"weight_average": {"decay": 0.8}}}


def checkpoints_of(folder: Path) -> list[Path]:
    return sorted(
        (path for path in (folder / "run").iterdir() if path.name.isdigit()),
        key=lambda path: int(path.name),
    )


@pytest.mark.filterwarnings("ignore:All samples in the training dataset")
@pytest.mark.parametrize("normalization", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "batchtopk"])
def test_every_checkpoint_holds_the_average_and_goes_on_from_the_weights(
    architecture: str, normalization: str, tmp_path: Path
):
    fields = {"normalize_activations": normalization, "n_checkpoints": 3, **FEATURES}
    runner = make_runner(run_config(tmp_path, architecture, **fields))
    averages: dict[int, dict[str, Tensor]] = {}
    raw: dict[int, dict[str, Tensor]] = {}
    real = runner.save_checkpoint

    def spy(trainer, checkpoint_name, wandb_aliases=None):
        step = trainer.n_training_tokens
        averages[step] = {k: v.clone() for k, v in trainer.features.averager.averages.items()}
        raw[step] = {k: v.detach().clone() for k, v in trainer.sae.named_parameters()}
        real(trainer, checkpoint_name, wandb_aliases)

    runner.save_checkpoint = spy  # type: ignore[method-assign]
    trained = runner.run()
    factor = None
    for folder in checkpoints_of(tmp_path):
        step = int(folder.name)
        saved = TrainingSAE.load_from_disk(str(folder))
        state = read_resume_files(folder).state
        factor = state["source"]["norm_scaling_factor"]
        assert (factor is not None) == (normalization != "none")
        want = averages[step]["W_enc"] * (1.0 if factor is None else factor)
        assert_close(saved.W_enc, want)
        assert (averages[step]["W_enc"] - raw[step]["W_enc"]).abs().max() > 1e-3
        assert torch.equal(state["sae"]["W_enc"], raw[step]["W_enc"])
    last = max(averages)
    scale = 1.0 if factor is None else factor
    assert_close(trained.W_enc, averages[last]["W_enc"] * scale)


def test_going_on_is_exact(tmp_path: Path):
    whole = train(run_config(tmp_path, n_checkpoints=3, **FEATURES))
    folder = str(checkpoints_of(tmp_path)[0])
    assert_same_weights(
        train(run_config(tmp_path, resume_from_checkpoint=folder, **FEATURES)), whole
    )


def test_evaluations_are_of_the_averages():
    seen: list[tuple[Tensor, Tensor]] = []
    sae = make_sae()
    run = trainer(sae, FEATURES["features"], n_steps=4)
    run.evaluator = lambda evaluated, *_: (
        seen.append((evaluated.W_enc.clone(), run.features.averager.averages["W_enc"].clone()))
        or {}
    )
    run._policy.best_metric = "some"
    run._policy.take_evaluation = lambda metrics: None  # type: ignore[method-assign]
    run.cfg.logger.wandb_log_frequency = run.cfg.logger.eval_every_n_wandb_logs = 1
    run.fit()
    assert len(seen) == 4
    for evaluated, average in seen:
        assert torch.equal(evaluated, average)
    assert (seen[2][0] - seen[3][0]).abs().max() > 1e-4
