"""A run of several SAEs goes on from any interruption to the weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from sae_lens.activations.multi_hook import MultiHookStore
from sae_lens.config import LoggingConfig, MultiSAETrainingRunnerConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner
from sae_lens.sae_training_runner import InterruptedException
from sae_lens.saes import (
    BatchTopKTrainingSAEConfig,
    BatchTopKTranscoderTrainingConfig,
    CrossLayerTranscoderTrainingConfig,
    GatedTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKCrosscoderTrainingConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.training.evaluation import InModelEvaluator
from sae_lens.training.resume_files import read_resume_files
from sae_lens.training.trainer import SAETrainer
from tests.helpers import D_IN, tiny_model
from tests.runs import token_rows

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")

BATCH, N_STEPS = 32, 15
SCALED = "expected_average_only_in"
READS = [f"blocks.{layer}.ln2.hook_normalized" for layer in range(2)]
WRITES = [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
Weights = dict[str, dict[str, Tensor]]


class Broken(Exception):
    pass


def saes() -> dict[str, Any]:
    return {
        "topk": TopKTrainingSAEConfig(d_in=D_IN, d_sae=32, k=4),
        "noisy": StandardTrainingSAEConfig(
            d_in=D_IN, d_sae=24, normalize_activations=SCALED, noise_scale=0.1
        ),
        "batch": BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=24, k=4),
        "head": GatedTrainingSAEConfig(d_in=D_IN // 2, d_sae=16, l1_coefficient=0.1),
        "mlp": BatchTopKTranscoderTrainingConfig(
            d_in=D_IN, d_sae=24, k=4, hook_name_out=WRITES[0], normalize_activations=SCALED
        ),
        "shared": TopKCrosscoderTrainingConfig(
            d_in=D_IN, d_sae=24, k=4, hook_names=READS, normalize_activations=SCALED
        ),
        "layers": CrossLayerTranscoderTrainingConfig(
            d_in=D_IN, d_sae=24, hook_names=READS, hook_names_out=WRITES,
            normalize_activations="whitening",
        ),
    }  # fmt: skip


def config(folder: Path, **fields: Any) -> MultiSAETrainingRunnerConfig:
    values: dict[str, Any] = {
        "saes": saes(), "hook_head_indices": {"head": 1}, "model_name": "tiny", "context_size": 16,
        "hook_names": {"topk": "blocks.1.hook_resid_pre", "noisy": "blocks.1.hook_resid_pre",
                       "batch": "blocks.0.hook_mlp_out", "head": "blocks.1.attn.hook_z",
                       "mlp": READS[0]},
        "train_batch_size_tokens": BATCH, "store_batch_size_prompts": 4, "n_batches_in_buffer": 4,
        "training_tokens": BATCH * N_STEPS, "checkpoint_path": str(folder), "lr": 1e-2,
        "verbose": False, "n_eval_batches": 1, "n_batches_for_norm_estimate": 3,
        "feature_sampling_window": 4, "lr_warm_up_steps": 5, "model_from_pretrained_kwargs": {},
        "logger": LoggingConfig(log_to_wandb=False, wandb_id="run", wandb_log_frequency=1,
                                eval_every_n_wandb_logs=4, log_to_jsonl=str(folder / "log.jsonl")),
    }  # fmt: skip
    return MultiSAETrainingRunnerConfig(**{**values, **fields})


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def run(model: Any, folder: Path, **fields: Any) -> Weights:
    rows = Dataset.from_dict({"tokens": token_rows(42)})
    found = MultiSAETrainingRunner(config(folder, **fields), rows, model).run()
    return {
        name: {k: v.clone() for k, v in sae.state_dict().items()} for name, sae in found.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Any) -> tuple[Path, Weights]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(model, folder, n_checkpoints=3)


def assert_same(got: Weights, want: Weights) -> None:
    for name, tensors in want.items():
        for key, tensor in tensors.items():
            assert torch.equal(got[name][key], tensor), (name, key)


def logged(folder: Path) -> dict[str, dict[int, Any]]:
    """What was logged of each step of each SAE; twice only if the same."""
    steps: dict[str, dict[int, Any]] = {}
    for file in sorted(folder.glob("log-*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            if "losses/mse_loss" in line:
                assert steps.setdefault(file.name, {}).setdefault(line["step"], line) == line
    return steps


def at_call(n: int, act: Callable[[], None], real: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[None] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == n:
            act()
        return real(*args, **kwargs)

    return call


def fail() -> None:
    raise Broken("no more")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


PLACES = {
    "language model": (MultiHookStore, "_run_model"),
    "step": (SAETrainer, "_forward"),
    "evaluation": (InModelEvaluator, "__call__"),
}


@pytest.mark.parametrize(
    ("place", "n", "act"),
    [("language model", 11, fail), ("language model", 14, kill), ("step", 1, fail),
     ("step", 2, fail), ("step", 55, fail), ("step", 58, kill), ("step", 15 * 7, fail),
     ("evaluation", 3, fail), ("evaluation", 5, kill)],
)  # fmt: skip
def test_an_interrupted_run_goes_on(
    place: str, n: int, act: Callable[[], None], model: Any, whole: tuple[Path, Weights],
    tmp_path: Path,
) -> None:  # fmt: skip
    owner, name = PLACES[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at_call(n, act, getattr(owner, name)))
        with pytest.raises((Broken, InterruptedException)):
            run(model, tmp_path)
    (saved,) = (tmp_path / "run" / "together").glob("[0-9]*")
    read_resume_files(saved)
    torch.rand(3)
    random.random()
    assert_same(run(model, tmp_path, resume_from_checkpoint="latest"), whole[1])
    assert logged(tmp_path) == logged(whole[0])


def test_a_signal_saves_all_without_stopping(
    model: Any, whole: tuple[Path, Weights], tmp_path: Path
) -> None:
    owner, name = PLACES["step"]
    with pytest.MonkeyPatch.context() as patch:
        ask = lambda: os.kill(os.getpid(), signal.SIGUSR1)  # noqa: E731
        patch.setattr(owner, name, at_call(7 * 7 + 2, ask, getattr(owner, name)))
        assert_same(run(model, tmp_path), whole[1])
    n_tokens = str(8 * BATCH)  # seven SAEs: in the eighth step
    saved = tmp_path / "run" / "together" / n_tokens
    assert all((tmp_path / "run" / sae / n_tokens).is_dir() for sae in saes())
    shutil.copytree(saved, tmp_path / "on" / "run" / "together" / n_tokens)
    assert_same(run(model, tmp_path / "on", resume_from_checkpoint="latest"), whole[1])


def test_batches_made_ahead_are_not_lost(
    model: Any, whole: tuple[Path, Weights], tmp_path: Path
) -> None:
    owner, name = PLACES["step"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at_call(54, fail, getattr(owner, name)))
        with pytest.raises(Broken):
            run(model, tmp_path, prefetch_llm_batches=True)
    assert_same(run(model, tmp_path, resume_from_checkpoint="latest"), whole[1])


def test_checkpoints_along_the_way_and_at_the_end_are_gone_on_from(
    model: Any, whole: tuple[Path, Weights], tmp_path: Path
) -> None:
    together = whole[0] / "run" / "together"
    names = sorted(path.name for path in together.iterdir())
    assert names == ["192", "352", f"final_{BATCH * N_STEPS}", "latest"]
    for name in ("192", "352"):
        shutil.copytree(together / name, tmp_path / name / "run" / "together" / name)
        path = str(tmp_path / name / "run" / "together" / name)
        assert_same(run(model, tmp_path / name, resume_from_checkpoint=path), whole[1])
    longer = run(model, tmp_path / "longer", training_tokens=BATCH * 20)
    shutil.copytree(whole[0] / "run", tmp_path / "on" / "run")
    fields = {"training_tokens": BATCH * 20, "resume_from_checkpoint": str(tmp_path / "on" / "run")}
    assert_same(run(model, tmp_path / "on", **fields), longer)


def test_a_damaged_one_is_passed_over_and_other_settings_refused(
    model: Any, whole: tuple[Path, Weights], tmp_path: Path
) -> None:
    shutil.copytree(whole[0] / "run", tmp_path / "run")
    newest = tmp_path / "run" / "together" / f"final_{BATCH * N_STEPS}"
    (newest / "resume_state.safetensors").write_bytes(b"no")
    with pytest.warns(UserWarning, match="Going on from 352"):
        assert_same(run(model, tmp_path, resume_from_checkpoint="latest"), whole[1])
    other = {**saes(), "topk": TopKTrainingSAEConfig(d_in=D_IN, d_sae=32, k=5)}
    for fields, name in (({"lr": 1.0}, "lr"), ({"saes": other}, "saes")):
        with pytest.raises(ValueError, match=f"{name} is .*in the checkpoint"):
            run(model, tmp_path, resume_from_checkpoint="latest", **fields)


def test_without_any_checkpoint_the_run_begins(
    model: Any, whole: tuple[Path, Weights], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="the run begins"):
        assert_same(run(model, tmp_path, resume_from_checkpoint="latest"), whole[1])
    with pytest.raises(FileNotFoundError):
        run(model, tmp_path, resume_from_checkpoint=str(tmp_path / "nowhere"))
