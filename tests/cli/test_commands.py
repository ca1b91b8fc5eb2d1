"""The commands around training: list, upload, pretokenize, cache-activations, dashboard, demo."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from sae_lens import demo_runner
from sae_lens.cli.dashboard import parse_features
from sae_lens.cli.errors import UsageError
from sae_lens.cli.main import main
from sae_lens.constants import EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME
from tests.helpers import GOLDENS, make_sae

FOLDER = GOLDENS / "v5" / "disk5-topk"
EMBEDDED = ["--dataset_path", EMBEDDED_DATASET_NAME, "--streaming", "true"]


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, warnings aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


# -- list ------------------------------------------------------------------------------------------


def test_list_shows_what_matches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "list", "gpt2-small-res-jb")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["RELEASE", "MODEL", "SAES", "REPOSITORY"]
    assert ["gpt2-small-res-jb", "gpt2-small", "13"] in [line[:3] for line in lines]


def test_list_shows_ids_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "\n  blocks.8.hook_resid_pre\n" in outcome(capsys, "list", "gpt2-small-res-jb", "--ids")[1]
    )
    found = json.loads(outcome(capsys, "list", "gpt2-small-res-jb", "--json")[1])
    assert "blocks.8.hook_resid_pre" in found[0]["saes_map"]


def test_list_without_a_match_fails(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = outcome(capsys, "list", "no-such-thing")
    assert (code, out) == (1, "")
    assert "no release matches 'no-such-thing'" in err
    assert outcome(capsys, "list", "no-such-thing", "--json")[:2] == (1, "[]\n")
    _, _, err = outcome(capsys, "list", "gpt2-small-res-bj")
    assert "did you mean gpt2-small-res-jb" in err


# -- upload ----------------------------------------------------------------------------------------


def test_upload_says_what_it_would_send(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "upload", "me/saes", FOLDER, f"mine={FOLDER}", "--dry-run")
    assert code == 0
    assert out.startswith("To me/saes, branch main:\n")
    assert "  blocks.1.hook_resid_pre/sae_weights.safetensors" in out
    assert "  mine/cfg.json" in out
    assert out.endswith("nothing was sent\n")


@pytest.mark.parametrize(
    ("folders", "code", "words"),
    [
        ([FOLDER, FOLDER], 2, "would both become 'blocks.1.hook_resid_pre'; write ID=FOLDER"),
        (["/nowhere"], 1, "/nowhere"),
        (["../up=" + str(FOLDER)], 1, "../up"),
        ([], 2, "[ID=]FOLDER"),
    ],
)
def test_upload_refuses(
    folders: list[Any], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = outcome(capsys, "upload", "me/saes", *folders, "--dry-run")
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert words in err


# -- data preparation ------------------------------------------------------------------------------


def test_pretokenize_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import Dataset, load_from_disk

    Dataset.from_dict({"text": ["def f(x):\n    return x + 1\n" * 20] * 8}).to_parquet(
        tmp_path / "text.parquet"
    )
    code, out, err = outcome(
        capsys,
        *("pretokenize", "--tokenizer_name", EMBEDDED_MODEL_NAME, "--dataset_path", "parquet"),
        *("--data_files", json.dumps([str(tmp_path / "text.parquet")]), "--num_proc", 1),
        *("--context_size", 16, "--save_path", tmp_path / "tokens"),
    )
    assert code == 0, err
    rows = load_from_disk(str(tmp_path / "tokens"))
    assert out == f"{len(rows)} rows of 16 tokens in {tmp_path / 'tokens'}\n"
    assert len(rows[0]["input_ids"]) == 16


def test_pretokenize_needs_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = outcome(capsys, "pretokenize", *EMBEDDED)
    assert code == 2
    assert "--save_path FOLDER or --hf_repo_id NAME" in err


def test_cache_activations_says_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = outcome(
        capsys,
        *("cache-activations", *EMBEDDED, "--model_name", EMBEDDED_MODEL_NAME),
        *("--hook_name", "blocks.1.hook_resid_pre", "--hook_layer", 1, "--d_in", 128),
        *("--context_size", 16, "--training_tokens", 256, "--model_batch_size", 8),
        *("--new_cached_activations_path", tmp_path / "cache"),
    )
    assert code == 0, err
    assert "total training tokens: 256" in out
    assert "disk space" in out
    assert out.endswith(f"16 rows in {tmp_path / 'cache'}\n")


@pytest.mark.parametrize("command", ["pretokenize", "cache-activations"])
def test_a_config_can_be_checked_alone(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    fields = {
        "pretokenize": "dataset_path: a/b\nseed: 3\n",
        "cache-activations": "dataset_path: a/b\nmodel_name: m\nmodel_batch_size: 1\nseed: 3\n"
        "hook_name: blocks.0.hook_resid_pre\nhook_layer: 0\nd_in: 8\ntraining_tokens: 64\n"
        "context_size: 8\n",
    }
    file.write_text(fields[command])
    code, out, err = outcome(capsys, command, "--config", file, "--dry-run")
    assert code == 0, err
    assert json.loads(out)["seed"] == 3
    code, _, err = outcome(capsys, command, "--config", file, "--sed", "3")
    assert code == 2
    assert "did you mean --seed?" in err


# -- dashboard -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "features"),
    [(None, None), ("7", [7]), ("0-3,7", [0, 1, 2, 3, 7]), ("5-5, 2", [5, 2])],
)
def test_features_as_text(text: str | None, features: list[int] | None) -> None:
    assert parse_features(text) == features


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "3-1", "1,,2"])
def test_features_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="feature|backwards"):
        parse_features(text)


def test_dashboard_writes_a_page_and_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = make_sae(
        "standard",
        d_in=128,
        d_sae=16,
        model_name=EMBEDDED_MODEL_NAME,
        dataset_path=EMBEDDED_DATASET_NAME,
        context_size=32,
    )
    sae.save_model(tmp_path / "sae")
    page, data = tmp_path / "page.html", tmp_path / "data.json"
    code, out, err = outcome(
        capsys,
        *("dashboard", tmp_path / "sae", "--features", "1,4", "--n_tokens", 128),
        *("--output", page, "--json", data),
    )
    assert code == 0, err
    assert out == f"written to {page}\nwritten to {data}\n"
    assert EMBEDDED_MODEL_NAME in page.read_text()
    assert [f["index"] for f in json.loads(data.read_text())["features"]] == [1, 4]


def test_dashboard_needs_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sae(dataset_path="").save_model(tmp_path)
    code, _, err = outcome(capsys, "dashboard", tmp_path)
    assert code == 1
    assert "names no dataset; pass one" in err


# -- demo ------------------------------------------------------------------------------------------


def test_demo_passes_its_settings_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def run_demo(output: str, settings: demo_runner.DemoSettings, say: Any) -> None:
        calls.append((output, settings))
        say("done")

    monkeypatch.setattr(demo_runner, "run_demo", run_demo)
    code, out, _ = outcome(capsys, "demo", "--output", "x", "--training_tokens", "1e5", "--seed", 3)
    assert (code, out) == (0, "done\n")
    assert calls == [("x", demo_runner.DemoSettings(training_tokens=100_000, seed=3))]
