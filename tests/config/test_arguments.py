from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sae_lens.config import (
    LanguageModelSAERunnerConfig,
    PretokenizeRunnerConfig,
    SAETrainerConfig,
)
from sae_lens.config.arguments import (
    add_config_arguments,
    config_from_file,
    config_from_values,
    config_values,
    convert,
    field_help,
    read_config_file,
)
from sae_lens.saes import JumpReLUTrainingSAEConfig


def from_words(*words: str, cls: type[Any] = LanguageModelSAERunnerConfig) -> Any:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_config_arguments(parser, cls)
    return config_from_values(cls, config_values(cls, parser.parse_args(words)))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")


def test_every_kind_of_flag() -> None:
    cfg = from_words(
        "--d_in", "16", "--d-sae", "64", "--lr", "1e-3", "--training_tokens", "1e6",
        "--normalize_sae_decoder", "False", "--autocast", "--activation_fn", "tanh-relu",
        "--model_kwargs", '{"a": 1}', "--lr_end", "none", "--normalize_activations", "none",
        "--hook_head_index", "3", "--seqpos_slice", "1", "none", "2", "--wandb_id", "null",
        "--exclude_special_tokens", "5", "6",
    )  # fmt: skip
    assert (cfg.d_in, cfg.d_sae, cfg.lr, cfg.training_tokens) == (16, 64, 1e-3, 1_000_000)
    assert isinstance(cfg.training_tokens, int)
    assert cfg.normalize_sae_decoder is False
    assert cfg.autocast is True
    assert cfg.activation_fn == "tanh-relu"
    assert cfg.model_kwargs == {"a": 1}
    assert cfg.lr_end == pytest.approx(1e-4)
    assert cfg.normalize_activations == "none"
    assert cfg.hook_head_index == 3
    assert cfg.seqpos_slice == (1, None, 2)
    assert cfg.wandb_id is None
    assert cfg.exclude_special_tokens == [5, 6]


def test_lists_and_flags_in_their_other_spellings() -> None:
    cfg = from_words("--seqpos_slice", "[0, 10]", "--exclude_special_tokens")
    assert cfg.seqpos_slice == (0, 10)
    assert cfg.exclude_special_tokens is True
    assert from_words("--exclude_special_tokens", "[3]").exclude_special_tokens == [3]
    assert from_words("--exclude_special_tokens", "false").exclude_special_tokens is False


def test_nested_configs_as_json() -> None:
    cfg = from_words(
        "--sae", '{"architecture": "topk", "d_in": 8, "d_sae": 16, "k": 2}',
        "--logger", '{"log_to_wandb": false}',
    )  # fmt: skip
    assert cfg.sae.k == 2
    assert cfg.log_to_wandb is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--d_in", "wide"], "d_in: 'wide' is not an int"),
        (["--d_in", "1.5"], "d_in: '1.5'"),
        (["--autocast", "maybe"], "autocast: 'maybe'"),
        (["--model_kwargs", "{a}"], "model_kwargs: '{a}'"),
        (["--lr", "fast"], "lr: 'fast' is not a float"),
        (["--architecture", "topq"], "Unknown architecture 'topq'.*topk"),
        (["--logger", '{"wandb_projekt": "x"}'], "did you mean 'wandb_project'"),
        (["--sae", '{"d_in": 3}'], "architecture"),
        (["--sae", '{"architecture": "topk", "d_in": 8, "d_sae": 16, "kk": 2}'], "'kk'"),
    ],
)
def test_values_that_do_not_fit(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_words(*words)


def test_yaml_and_json_files(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "d_in: 32\nlr: 3e-4\ntraining_tokens: 2e6\nactivation_fn: null\nseqpos_slice: [0, 5]\n"
        "sae:\n  architecture: jumprelu\n  d_in: 32\n  d_sae: 64\n  l0_coefficient: 1e-3\n"
    )
    cfg = config_from_file(LanguageModelSAERunnerConfig, tmp_path / "run.yaml")
    assert (cfg.d_in, cfg.lr, cfg.training_tokens) == (32, 3e-4, 2_000_000)
    assert cfg.seqpos_slice == (0, 5)
    assert isinstance(cfg.sae, JumpReLUTrainingSAEConfig)
    assert cfg.sae.l0_coefficient == 1e-3
    (tmp_path / "run.json").write_text('{"total_training_samples": 5}')
    trainer = config_from_file(
        SAETrainerConfig, tmp_path / "run.json", overrides={"train_batch_size_samples": "2"}
    )
    assert (trainer.total_training_samples, trainer.train_batch_size_samples) == (5, 2)


def test_a_misspelled_field_gets_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("l1_coeficient: 3\n")
    with pytest.raises(ValueError, match=r"run\.yaml has no field 'l1_coeficient' \(did you mean "
                                         r"'l1_coefficient'\?\)"):  # fmt: skip
        config_from_file(LanguageModelSAERunnerConfig, path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: [1", "not valid yaml"),
        ("a.json", "{", "not valid json"),
        ("a.yaml", "- 1\n", "must hold a mapping"),
        ("a.yaml", "1: 2\n", "must hold a mapping"),
    ],
)
def test_files_that_are_no_config(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config_file(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config file .*nowhere\.yaml"):
        read_config_file(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as text"):
        read_config_file(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert read_config_file(tmp_path / "empty.yaml") == {}


def test_every_field_has_a_help_text() -> None:
    for cls in (LanguageModelSAERunnerConfig, SAETrainerConfig):
        texts = field_help(cls)
        assert [f.name for f in dataclasses.fields(cls) if not texts.get(f.name)] == []
    parser = argparse.ArgumentParser()
    add_config_arguments(parser, LanguageModelSAERunnerConfig)
    text = parser.format_help()
    assert "--train-batch-size-tokens" in text
    assert "learning rate. (default: 0.0003)" in text


def test_other_configs_work_as_well() -> None:
    cfg = from_words("--tokenizer_name", "t", "--num_proc", "2", cls=PretokenizeRunnerConfig)
    assert (cfg.tokenizer_name, cfg.num_proc) == ("t", 2)


@pytest.mark.parametrize(
    ("given", "want"), [("5", 5), ("0.5", 0.5), ("1.0", 1.0), (1.0, 1.0), (1, 1), ("1e2", 100)]
)
def test_steps_are_numbers_or_shares(given: Any, want: int | float):
    got = convert(given, int | float)
    assert got == want
    assert type(got) is type(want)
