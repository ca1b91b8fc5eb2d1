"""Everything that changes in a run is in its checkpoints: its end does not tell that it stopped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_lens.sae_training_runner import InterruptedException
from sae_lens.training.resume_files import read_resume_files
from sae_lens.training.trainer import SAETrainer
from tests.helpers import tiny_model
from tests.runs import BATCH, LATER_FORM, run_config, train

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")

FINAL = f"final_{BATCH * 30}"
WITH_FEATURES = {
    "features": {"weight_average": {"decay": 0.9}, "target_l0": {"target": 4.0}},
    "on_nan": "skip_batch",
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested states are not exactly the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} items"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for number, pair in pairs for d in differences(*pair, f"{where}[{number}]")]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if torch.equal(one, other) and one.dtype == other.dtype else [where]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def train_in_parts(cfg_of: Any, stops: list[int], model: Any) -> None:
    """Train; stop after these steps, and go on."""
    real = SAETrainer._train_step
    for number in range(len(stops) + 1):
        with pytest.MonkeyPatch.context() as patch:

            def stop(self: SAETrainer, number: int = number, **arguments: Any) -> Any:
                if number < len(stops) and self.n_training_steps == stops[number]:
                    self.request_stop(InterruptedException("now"))
                return real(self, **arguments)

            patch.setattr(SAETrainer, "_train_step", stop)
            cfg = cfg_of({"resume_from_checkpoint": "latest"} if number else {})
            if number < len(stops):
                with pytest.raises(InterruptedException):
                    train(cfg, model)
            else:
                train(cfg, model)
        random.random(), np.random.rand(), torch.rand(3)


@pytest.mark.parametrize("stops", [[9], [0, 5, 14, 28]])
@pytest.mark.parametrize(
    ("architecture", "fields"),
    [("standard", WITH_FEATURES), ("jumprelu", {}), (LATER_FORM, {}), ("topk", {}), ("gated", {})],
)
def test_the_last_state_is_that_of_an_uninterrupted_run(
    architecture: str, fields: dict[str, Any], stops: list[int], tmp_path: Path, model: Any
) -> None:
    """Weights, optimiser, schedules, statistics, counters, thresholds, generators, all of it."""
    fields = {**fields, "n_checkpoints": 5}
    train(run_config(tmp_path / "whole", architecture, **fields), model)
    train_in_parts(
        lambda more: run_config(tmp_path / "parts", architecture, **fields, **more), stops, model
    )
    whole, parts = (
        read_resume_files(tmp_path / name / "run" / FINAL).state for name in ("whole", "parts")
    )
    for state in (whole, parts):
        state["trainer"].pop("logger")
        assert {"python", "numpy", "torch"} <= state["random"].keys()
        assert state["trainer"]["checkpoint_thresholds"] == []
    assert differences(whole, parts) == []
    names = [
        {path.name for path in (tmp_path / name / "run").iterdir()} for name in ("whole", "parts")
    ]
    assert names[1] - names[0] <= {str((n + 1) * BATCH) for n in stops}
    assert names[0] <= names[1]


def test_the_difference_would_be_seen(tmp_path: Path, model: Any) -> None:
    for seed in (1, 2):
        train(run_config(tmp_path / str(seed), seed=seed), model)
    states = [read_resume_files(tmp_path / str(seed) / "run" / FINAL).state for seed in (1, 2)]
    found = " ".join(differences(*states))
    assert ".sae.W_enc" in found and ".random.torch" in found and ".trainer.optimizer" in found


def test_global_generators_go_on(tmp_path: Path, model: Any) -> None:
    """Whoever draws from them in a step draws what would have been drawn."""
    drawn: dict[int, tuple[float, ...]] = {}
    real = SAETrainer._train_step

    def draw(self: SAETrainer, **arguments: Any) -> Any:
        values = (random.random(), float(np.random.rand()), float(torch.rand(1)))
        assert drawn.setdefault(self.n_training_steps, values) == values
        return real(self, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAETrainer, "_train_step", draw)
        train(run_config(tmp_path / "whole"), model)
        assert len(drawn) == 30
        train_in_parts(lambda more: run_config(tmp_path / "parts", **more), [4, 17], model)


def test_the_same_wandb_run_goes_on(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    opened: list[dict[str, Any]] = []
    steps: list[int] = []

    class Run:
        id = "run-of-wandb"

    def init(**options: Any) -> None:
        opened.append(options)
        monkeypatch.setattr(wandb, "run", Run())

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "log", lambda values, step: steps.append(step))
    monkeypatch.setattr(wandb, "finish", lambda **_: None)
    monkeypatch.setattr(wandb, "log_artifact", lambda *_, **__: None)
    fields = {"log_to_wandb": True, "log_to_jsonl": None, "wandb_id": None}
    checkpoints = str(tmp_path / "checkpoints")
    train_in_parts(lambda more: run_config(checkpoints, **{**fields, **more}), [9], model)
    first, second = opened
    assert first["id"] is None and "resume" not in first
    assert second["id"] == "run-of-wandb" and second["resume"] == "allow"
    assert sorted(set(steps)) == list(range(30))
