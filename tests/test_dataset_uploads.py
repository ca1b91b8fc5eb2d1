"""Tokenised and cached datasets on a hub in this process, through the real client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk
from pyarrow.parquet import read_table

from sae_lens import cache_activations_runner
from sae_lens.cache_activations_runner import CacheActivationsRunner
from sae_lens.config import CacheActivationsRunnerConfig, PretokenizeRunnerConfig
from sae_lens.constants import EMBEDDED_MODEL_NAME
from sae_lens.pretokenize_runner import PretokenizeRunner
from tests.helpers import D_IN, tiny_model
from tests.hub_client import point_client_at, reset_sessions
from tests.hub_server import Fault, HubServer
from tests.runs import token_rows

REPO = "datasets/me/rows"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as running:
        running.token = "secret"
        monkeypatch.setenv("HF_TOKEN", "secret")
        point_client_at(running.url, tmp_path / "hub_cache", monkeypatch)
        yield running
    reset_sessions()


def tokenise(folder: Path, **fields: Any) -> Dataset:
    text = folder / "texts.jsonl"
    text.write_text("".join(json.dumps({"text": f"x = {i}\n" * 9}) + "\n" for i in range(12)))
    cfg = PretokenizeRunnerConfig(
        tokenizer_name=EMBEDDED_MODEL_NAME, dataset_path="json", data_files=[str(text)],
        context_size=16, num_proc=1, shuffle=False, hf_repo_id="me/rows",
        save_path=str(folder / "saved"), **fields,
    )  # fmt: skip
    return PretokenizeRunner(cfg).run()  # type: ignore[return-value]


def cache(folder: Path, **fields: Any) -> Dataset:
    data = folder / "data"
    Dataset.from_dict({"tokens": token_rows(24)}).save_to_disk(str(data))
    cfg = CacheActivationsRunnerConfig(
        dataset_path=str(data), model_name="tiny", model_batch_size=4, context_size=16, d_in=D_IN,
        hook_name="blocks.1.hook_resid_pre", hook_layer=1, training_tokens=24 * 16, shuffle=False,
        new_cached_activations_path=str(folder / "saved"), device="cpu", streaming=False,
        hf_repo_id="me/rows", **fields,
    )  # fmt: skip
    return CacheActivationsRunner(cfg).run()


UPLOADS = [
    pytest.param(tokenise, "sae_lens.json", id="tokens"),
    pytest.param(cache, "cache_activations_runner_cfg.json", id="activations"),
]


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_activations_runner, "load_model", lambda *_, **__: tiny_model())


@pytest.mark.parametrize(("make", "metadata"), UPLOADS)
def test_what_is_uploaded_is_what_was_made(
    make: Callable[..., Dataset], metadata: str, tmp_path: Path, server: HubServer
) -> None:
    made = make(tmp_path, hf_num_shards=2, hf_revision="other", hf_is_private_repo=True)
    repository = server.repositories[REPO]
    assert repository.private
    files = repository.commits[repository.branches["other"]]
    tables = [read_table(BytesIO(files[name])) for name in sorted(files) if "parquet" in name]
    assert len(tables) == 2
    for column in made.column_names:
        uploaded = [row for table in tables for row in plain(table[column])]
        assert uploaded == made.with_format(None)[:][column]
    assert json.loads(files[metadata])["context_size"] == 16


def plain(column: Any) -> list[Any]:
    """The rows of a column as numbers or lists of numbers, whatever type describes them."""
    storage = [getattr(chunk, "storage", chunk) for chunk in column.chunks]
    return [row for chunk in storage for row in chunk.to_pylist()]


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, PermissionError, "answered 401: log in"),
        (403, PermissionError, "answered 403: log in"),
        (404, FileNotFoundError, "answered 404: check the owner"),
        (429, ConnectionError, "answered 429: too many requests"),
        (500, ConnectionError, "answered 500; try again later"),
    ],
)
@pytest.mark.parametrize("at", ["/api/repos/create", "/commit/"])
@pytest.mark.parametrize(("make", "metadata"), UPLOADS)
def test_a_hub_that_says_no(
    make: Callable[..., Dataset], metadata: str, at: str, status: int, kind: type[Exception],
    words: str, tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    server.faults.append(Fault(at, status, times=None))
    with pytest.raises(kind, match=f"me/rows failed: the hub {words}.*Nothing is lost"):
        make(tmp_path)
    assert len(load_from_disk(str(tmp_path / "saved"))) > 0
    commits = server.repositories[REPO].commits if REPO in server.repositories else {"": {}}
    assert all(not files for files in commits.values()), "half a dataset was uploaded"


def test_a_hub_that_is_gone(tmp_path: Path, server: HubServer) -> None:
    server.stop()
    with pytest.raises(ConnectionError, match="cannot be reached.*Nothing is lost"):
        tokenise(tmp_path)
    assert len(load_from_disk(str(tmp_path / "saved"))) > 0


def test_no_more_files_than_rows(tmp_path: Path, server: HubServer) -> None:
    rows = tokenise(tmp_path, hf_num_shards=64)
    repository = server.repositories[REPO]
    files = repository.commits[repository.branches["main"]]
    assert sum(name.endswith(".parquet") for name in files) == len(rows) < 64


def test_a_wrong_token(tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(PermissionError, match="answered 401"):
        tokenise(tmp_path)
    assert not server.repositories
