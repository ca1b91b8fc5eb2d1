"""`sae-lens train`: file and flags make one config, wrong ones are named, a run leaves an SAE."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_lens import sae_training_runner
from sae_lens.cli.main import main
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME

TINY_RUN = {
    "model_name": EMBEDDED_MODEL_NAME,
    "dataset_path": EMBEDDED_DATASET_NAME,
    "hook_name": "blocks.2.hook_resid_pre",
    "hook_layer": 2,
    "d_in": 128,
    "expansion_factor": 2,
    "architecture": "topk",
    "activation_fn_kwargs": {"k": 4},
    "normalize_sae_decoder": False,
    "b_dec_init_method": "zeros",
    "context_size": 16,
    "training_tokens": 512,
    "train_batch_size_tokens": 128,
    "store_batch_size_prompts": 8,
    "n_batches_in_buffer": 4,
    "log_to_wandb": False,
    "verbose": False,
}


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**TINY_RUN, "checkpoint_path": str(tmp_path / "checkpoints")}))
    return path


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["train", "--dry-run", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_help_names_every_field_and_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(LanguageModelSAERunnerConfig):
        if field.init:
            assert f"--{field.name}" in words
    assert "the language model, by its name in TransformerLens or on the hub" in words
    assert "(default: gelu-2l)" in words


def test_flags_win_over_the_file(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = dry_run(
        capsys,
        *("--config", str(run_file), "--lr", "2e-4", "--training_tokens", "1e6"),
        *("--activation_fn_kwargs", '{"k": 7}', "--prepend-bos", "false", "--wandb_id", "abc"),
    )
    assert cfg["d_in"] == 128
    assert cfg["lr"] == 2e-4
    assert cfg["training_tokens"] == 1_000_000
    assert cfg["activation_fn_kwargs"] == {"k": 7}
    assert cfg["prepend_bos"] is False
    assert Path(cfg["checkpoint_path"]) == run_file.parent / "checkpoints" / "abc"


def test_a_dry_run_needs_no_file_and_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dry_run(capsys, "--d_in", "32", "--verbose", "false")["d_sae"] == 128
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --config FILE or fields"),
        (["--trainig_tokens", "5"], "unknown argument --trainig_tokens: did you mean --training_"),
        (["--lr", "fast"], "'fast' is not a float"),
        (["--architecture", "topkk"], "topkk"),
        (["--config", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["--d_sae", "64", "--expansion_factor", "4", "--d_in", "8"], "expansion_factor"),
    ],
)
def test_a_wrong_config_is_one_line_and_ends_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert words in printed.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lerning_rate: 3", "lerning_rate"),
        ("hook_nam: blocks.0.hook_resid_pre", "hook_name"),
        ("[1, 2]", "mapping of field names"),
        ("a: [", "not valid yaml"),
        ("d_in: wide", "d_in"),
    ],
)
def test_a_wrong_file_is_named(
    tmp_path: Path, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    assert main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert str(path) in error
    assert words in error


def test_a_run_from_the_shell_leaves_an_sae(run_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sae_lens", "train", "--config", str(run_file), "--wandb_id", "x"],
        capture_output=True,
        text=True,
        cwd=run_file.parent,
    )
    assert done.returncode == 0, done.stderr
    folder = run_file.parent / "checkpoints" / "x" / "final_512"
    assert f"saved in {folder}" in done.stdout
    assert "Traceback" not in done.stderr
    assert main(["show", str(folder)]) == 0


@pytest.mark.filterwarnings("ignore:Dataset is not tokenized")
def test_a_run_that_fails_says_why_in_one_line(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(run_file), "--d_in", "64"]) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("sae-lens train: error:")]
    assert len(errors) == 1
    assert "64" in errors[0]
    assert "128" in errors[0]


def test_an_interrupted_run_ends_with_130(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def __init__(self, cfg: LanguageModelSAERunnerConfig) -> None:
            self.cfg = cfg

        def run(self) -> None:
            raise sae_training_runner.InterruptedException("interrupted by SIGTERM")

    monkeypatch.setattr(sae_training_runner, "SAETrainingRunner", Interrupted)
    assert main(["train", "--config", str(run_file)]) == 130
    hint, interrupted = capsys.readouterr().err.splitlines()
    assert "checkpoints" in hint and "--resume" in hint
    assert interrupted == "sae-lens train: interrupted"


@pytest.mark.filterwarnings("ignore:Dataset is not tokenized")
def test_a_run_goes_on_with_resume(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--config", str(run_file), "--wandb_id", "run"]
    assert main(train) == 0
    capsys.readouterr()
    for place in ([], ["latest"], [str(tmp_path / "checkpoints" / "run")]):
        assert main([*train, "--training_tokens", "768", "--resume", *place]) == 0
        assert "final_768" in capsys.readouterr().out
    assert main([*train, "--lr", "0.5", "--resume"]) == 1
    assert "lr is 0.5" in capsys.readouterr().err
    assert main([*train, "--resume", "true"]) == 2
    assert "resume_from_checkpoint" in capsys.readouterr().err
    assert main([*train, "--resume", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
