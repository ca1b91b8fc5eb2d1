"""Evaluations in the middle of a run: fixed tokens, tokenised once, never trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformer_lens import HookedTransformer

from sae_lens import evals
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.training.trainer import SAETrainer
from tests.helpers import tiny_model
from tests.runs import run_config, token_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:The training dataset has:UserWarning"),
    pytest.mark.filterwarnings("ignore:All samples in the training dataset:UserWarning"),
]

N_HELD_OUT = 8
CONTEXT = 16


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return tiny_model()


def dataset(streaming: bool = False) -> Any:
    """Forty rows; those held out have even tokens, the others odd ones."""
    rows = torch.tensor(token_rows())
    rows = rows - rows % 2
    rows[N_HELD_OUT:] += 1
    whole = Dataset.from_dict({"tokens": rows.tolist()})
    return whole.to_iterable_dataset() if streaming else whole


def seen_by_the_model(model: HookedTransformer, run: Any) -> list[torch.Tensor]:
    """Every batch of tokens that the model reads while `run()` is under way."""
    batches: list[torch.Tensor] = []
    handle = model.embed.register_forward_pre_hook(lambda module, args: batches.append(args[0]))
    try:
        run()
    finally:
        handle.remove()
    return batches


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_held_out_are_evaluated_and_never_trained_on(
    streaming: bool, tmp_path: Path, model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[torch.Tensor] = []
    run_evals = evals.run_evals

    def recording(sae: Any, activation_store: Any, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(activation_store.tokens.clone())
        return run_evals(sae, activation_store, *args, **kwargs)

    monkeypatch.setattr(evals, "run_evals", recording)
    cfg = run_config(
        tmp_path, eval_held_out_rows=N_HELD_OUT, n_eval_batches=2, eval_batch_size_prompts=4,
        streaming=streaming, training_tokens=32 * 60,
    )  # fmt: skip
    runner = SAETrainingRunner(cfg, override_dataset=dataset(streaming), override_model=model)
    trained_on: list[int] = []
    get_activations = runner.activations_store.get_activations

    def reading(tokens: torch.Tensor) -> torch.Tensor:
        trained_on.extend(tokens.flatten().tolist())
        return get_activations(tokens)

    monkeypatch.setattr(runner.activations_store, "get_activations", reading)
    runner.run()

    # more than one pass over the 32 rows that are left
    assert len(trained_on) > 32 * CONTEXT
    assert all(token % 2 == 1 for token in trained_on)
    assert len(evaluated) >= 3
    expected = torch.tensor(dataset()[:N_HELD_OUT]["tokens"])
    assert all(torch.equal(tokens.cpu(), expected) for tokens in evaluated)


def test_the_same_sae_gets_the_same_numbers_whenever_it_is_evaluated(
    tmp_path: Path, model: HookedTransformer
) -> None:
    cfg = run_config(tmp_path, eval_held_out_rows=N_HELD_OUT, n_eval_batches=2, lr=0.0)
    SAETrainingRunner(cfg, override_dataset=dataset(), override_model=model).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    groups = ("model_performance_preservation", "reconstruction_quality", "sparsity")
    found = [{group: line[group] for group in groups} for line in lines if "sparsity" in line]
    assert len(found) >= 3
    assert all(numbers == found[0] for numbers in found)


def test_text_is_tokenised_once(
    tmp_path: Path, model: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tmp_path / "held_out"
    Dataset.from_dict({"text": [f"held out {i}" for i in range(30)]}).save_to_disk(held_out)
    tokenised: list[str] = []

    def to_tokens(text: str, **kwargs: Any) -> torch.Tensor:
        tokenised.append(text)
        return torch.tensor([[2 + ord(letter) % 30 for letter in text]])

    monkeypatch.setattr(model, "to_tokens", to_tokens)
    cfg = run_config(
        tmp_path, eval_dataset_path=str(held_out), n_eval_batches=2, eval_batch_size_prompts=3,
        prepend_bos=False, eval_every_n_wandb_logs=2,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="not tokenized"):
        SAETrainingRunner(cfg, override_dataset=dataset(), override_model=model).run()
    assert tokenised
    assert len(tokenised) == len(set(tokenised))
    n_evaluations = (tmp_path / "log.jsonl").read_text().count("ce_loss_score")
    assert n_evaluations >= 10


def test_a_trainer_made_by_hand_evaluates_on_the_rows_held_out(
    tmp_path: Path, model: HookedTransformer
) -> None:
    cfg = run_config(tmp_path, eval_held_out_rows=N_HELD_OUT, n_eval_batches=2)
    runner = SAETrainingRunner(cfg, override_dataset=dataset(), override_model=model)
    store = runner.activations_store
    trainer = SAETrainer(model, runner.sae, store, lambda **kwargs: None, cfg)
    metrics: dict[str, Any] = {}

    def evaluate() -> None:
        metrics.update(trainer.evaluator(runner.sae, store, trainer_scaler()))  # type: ignore[misc]

    def trainer_scaler() -> Any:
        return type("Scaler", (), {"scaling_factor": None})()

    read = seen_by_the_model(model, evaluate)
    assert metrics["token_stats"]["total_tokens_eval_reconstruction"] == N_HELD_OUT * CONTEXT
    assert read
    assert all(not (tokens % 2).any() for tokens in read)


def test_without_held_out_data_the_evaluations_repeat_their_tokens(
    tmp_path: Path, model: HookedTransformer
) -> None:
    cfg = run_config(tmp_path, lr=0.0, n_eval_batches=2)
    SAETrainingRunner(cfg, override_dataset=dataset(), override_model=model).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = [line["sparsity"] for line in lines if "sparsity" in line]
    assert len(found) >= 3
    assert all(numbers == found[0] for numbers in found)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"eval_held_out_rows": -1}, "eval_held_out_rows is -1"),
        ({"eval_held_out_rows": 2.5}, "number of rows"),
        ({"eval_held_out_rows": 2, "eval_dataset_path": "other"}, "give one of them"),
        ({"eval_held_out_rows": 2, "use_cached_activations": True}, "a cache that already holds"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LanguageModelSAERunnerConfig(**fields)


def test_all_rows_cannot_be_held_out(tmp_path: Path, model: HookedTransformer) -> None:
    cfg = run_config(tmp_path, eval_held_out_rows=40)
    with pytest.raises(ValueError, match="40 of 40 rows"):
        SAETrainingRunner(cfg, override_dataset=dataset(), override_model=model)
