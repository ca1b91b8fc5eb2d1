"""A tiny run that tests interrupt, in this process or in one of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.sae_training_runner import InterruptedException, SAETrainingRunner
from sae_lens.saes.batch_topk import BatchTopKTrainingSAEConfig
from sae_lens.training import checkpoints, trainer_checkpoints
from tests.helpers import D_IN, tiny_model

BATCH = 32
LATER_FORM = "batchtopk"


def token_rows(n: int = 40) -> list[list[int]]:
    """Rows of 16 tokens for the tiny model."""
    return torch.randint(2, 32, (n, 16), generator=torch.Generator().manual_seed(0)).tolist()


def run_config(folder: Path | str, architecture: str = "standard", **fields: Any) -> Any:
    """A run in which everything that has a state is used, in the folder `run` of `folder`."""
    values: dict[str, Any] = {
        "model_name": "tiny", "hook_name": "blocks.1.hook_resid_pre", "context_size": 16,
        "train_batch_size_tokens": BATCH, "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 4, "training_tokens": BATCH * 30, "log_to_wandb": False,
        "checkpoint_path": str(folder), "wandb_id": "run", "verbose": False, "lr": 1e-2,
        "model_from_pretrained_kwargs": {}, "wandb_log_frequency": 1,
        "eval_every_n_wandb_logs": 8, "n_eval_batches": 1,
        "log_to_jsonl": str(Path(folder) / "log.jsonl"), "dead_feature_window": 3,
        "feature_sampling_window": 7, "lr_warm_up_steps": 4, "lr_decay_steps": 6,
        "adam_beta1": 0.9, "n_batches_for_norm_estimate": 3,
    }  # fmt: skip
    if architecture == LATER_FORM:
        sae: Any = BatchTopKTrainingSAEConfig(
            d_in=D_IN, d_sae=32, k=4,
            normalize_activations=fields.pop("normalize_activations", "none"),
        )  # fmt: skip
        names = ("log_to_wandb", "log_to_jsonl", "wandb_log_frequency", "eval_every_n_wandb_logs",
                 "wandb_id")  # fmt: skip
        logging = {name: fields.pop(name, values.pop(name, None)) for name in names}
        return LanguageModelSAERunnerConfig(
            **{**values, "sae": sae, "logger": LoggingConfig(**logging), **fields}
        )
    values |= {"architecture": architecture, "d_in": D_IN, "d_sae": 32, "l1_warm_up_steps": 10}
    if architecture == "topk":
        values["activation_fn_kwargs"] = {"k": 4}
    else:
        values["noise_scale"] = 0.05
    return LanguageModelSAERunnerConfig(**{**values, **fields})


def make_runner(cfg: Any, model: Any = None, dataset: Any = None) -> SAETrainingRunner:
    """A runner on the tiny model and the rows above."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The training dataset has")
        return SAETrainingRunner(
            cfg,
            override_dataset=Dataset.from_dict({"tokens": token_rows()})
            if dataset is None
            else dataset,
            override_model=tiny_model() if model is None else model,
        )


def train(cfg: Any, model: Any = None, dataset: Any = None) -> dict[str, Tensor]:
    """Run it and return the final weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All samples in the training dataset")
        sae = make_runner(cfg, model, dataset).run()
    return {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}


def losses_by_step(log: Path) -> dict[int, dict[str, Any]]:
    """What was logged of every step; a step that was logged twice must agree with itself."""
    steps: dict[int, dict[str, Any]] = {}
    for text in log.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the process was killed while it wrote this line
        if "losses/mse_loss" in line:
            before = steps.setdefault(line["step"], line)
            assert before == line, f"step {line['step']} differs from what it was before"
    return steps


def assert_same_weights(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def child(folder: str, fields: dict[str, Any], dies_at: int | None) -> None:
    """The body of a process: begin the run in `folder`, or go on with it.

    It ends with 0, with 7 when it was interrupted, or by killing itself at the given moment of
    writing checkpoints.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if dies_at is not None:
        _die_while_writing(dies_at)
    cfg = run_config(folder, resume_from_checkpoint="latest", **fields)
    runner = make_runner(cfg)
    code = 0
    try:
        (Path(folder) / "ready").touch()
        runner.run()
    except (InterruptedException, KeyboardInterrupt):
        code = 7
    # What the interpreter does at its end is not tested here, and may take long.
    os._exit(code)


def start(folder: Path, fields: dict[str, Any], dies_at: int | None = None) -> Any:
    """A process of its own with that body. Only the first one takes the time to import torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs"])
    folder.mkdir(exist_ok=True)
    (folder / "ready").unlink(missing_ok=True)
    process = context.Process(target=child, args=(str(folder), fields, dies_at))
    process.start()
    return process


def _die_while_writing(moment: int) -> None:
    """SIGKILL this process at the `moment`-th call of what writes a checkpoint."""
    left = moment

    def dying(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*args, **kwargs)

        return call

    checkpoints._flush = dying(checkpoints._flush)
    checkpoints.shutil = SimpleNamespace(rmtree=dying(shutil.rmtree))  # type: ignore[assignment]
    trainer_checkpoints.mark_latest = dying(trainer_checkpoints.mark_latest)
    os.rename = dying(os.rename)
    os.replace = dying(os.replace)
