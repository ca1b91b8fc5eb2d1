"""Whole runs whose batches are made ahead train the same SAE."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.sae_training_runner import SAETrainingRunner
from tests.helpers import D_IN, tiny_model


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"tokens": row} for row in torch.randint(2, 32, (60, 16), generator=generator).tolist()]


def run(folder: Path, prefetch_batches: int) -> tuple[SAETrainingRunner, Path]:
    cfg = LanguageModelSAERunnerConfig(
        model_name="tiny", hook_name="blocks.1.hook_resid_pre", d_in=D_IN, d_sae=32,
        context_size=16, train_batch_size_tokens=32, store_batch_size_prompts=4,
        n_batches_in_buffer=4, training_tokens=32 * 12, log_to_wandb=False, n_checkpoints=2,
        checkpoint_path=str(folder / "checkpoints"), verbose=False, lr=1e-2,
        wandb_log_frequency=2, eval_every_n_wandb_logs=2, n_eval_batches=1,
        model_from_pretrained_kwargs={}, log_to_jsonl=str(folder / "log.jsonl"),
        normalize_activations="expected_average_only_in", n_batches_for_norm_estimate=3,
        prefetch_batches=prefetch_batches,
    )  # fmt: skip
    runner = SAETrainingRunner(cfg, override_dataset=rows(), override_model=tiny_model())
    runner.run()
    return runner, Path(cfg.checkpoint_path)


@pytest.mark.filterwarnings("ignore:All samples in the training dataset")
def test_the_same_sae_and_evaluations(tmp_path: Path) -> None:
    plain, plain_folder = run(tmp_path / "plain", 0)
    ahead, ahead_folder = run(tmp_path / "ahead", 3)
    assert not [thread for thread in threading.enumerate() if "prefetching" in thread.name]
    for name, parameter in plain.sae.state_dict().items():
        assert torch.equal(parameter, ahead.sae.state_dict()[name]), name
    metrics = [
        [
            line
            for line in (tmp_path / kind / "log.jsonl").read_text().splitlines()
            if "ce_loss" in line
        ]
        for kind in ("plain", "ahead")
    ]
    assert len(metrics[0]) == 3
    assert metrics[0] == metrics[1]
    # the checkpoint along the way holds what was made ahead, so that it can be gone on from
    (midway,) = (path for path in ahead_folder.iterdir() if path.name.isdecimal())
    store = load_file(midway / "activations_store_state.safetensors")
    assert store["prefetched"].shape[1:] == (32, 1, D_IN)
    plain_state = load_file(plain_folder / midway.name / "activations_store_state.safetensors")
    assert "prefetched" not in plain_state
    n_ahead = len(store["prefetched"])
    plain.activations_store.load_state_dict(plain_state)
    ahead.activations_store.load_state_dict(store)
    for _ in range(n_ahead + 4):
        want = plain.activations_store.next_batch()
        assert torch.equal(ahead.activations_store.next_batch(), want)
    ahead.activations_store.pause_prefetching()


def test_the_config_refuses_a_negative_number() -> None:
    with pytest.raises(ValueError, match="prefetch_batches is -1; it must be at least 0"):
        LanguageModelSAERunnerConfig(prefetch_batches=-1, log_to_wandb=False)
