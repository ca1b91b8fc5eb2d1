"""Tokenising: rows, metadata, saving, pushing, and training on the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, load_from_disk

from sae_lens import __version__, pretokenize_runner
from sae_lens.activations.embedded import load_embedded_tokenizer
from sae_lens.activations.store import ActivationsStore
from sae_lens.config import PretokenizeRunnerConfig
from sae_lens.constants import EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME
from sae_lens.pretokenize_runner import (
    PretokenizedDatasetMetadata,
    PretokenizeRunner,
    get_special_token_from_cfg,
    metadata_from_config,
    pretokenize_dataset,
    push_to_hugging_face_hub,
)

TEXTS = [f"def function_{i}(x):\n    return x + {i}\n" * (i % 5 + 1) for i in range(24)]


@pytest.fixture(autouse=True, scope="module")
def _no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_embedded_tokenizer()


def make_cfg(**fields: Any) -> PretokenizeRunnerConfig:
    return PretokenizeRunnerConfig(
        **{
            "tokenizer_name": EMBEDDED_MODEL_NAME,
            "context_size": 16,
            "num_proc": 1,
            "shuffle": False,
            **fields,
        }
    )


def texts() -> Dataset:
    return Dataset.from_dict({"text": TEXTS, "source": ["here"] * len(TEXTS)})


def text_files(folder: Path) -> dict[str, Any]:
    """Config fields that read the texts from a file."""
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return {"dataset_path": "json", "data_files": [str(file)]}


def packed_by_hand(tokenizer: Any, context: int, bos: int) -> list[list[int]]:
    """All texts end to end with one BOS between; each row begins with BOS."""
    rows: list[list[int]] = []
    row: list[int] = []
    for text in TEXTS:
        tokens = [t for t in tokenizer.encode(text) if t != bos]
        if row:
            row.append(bos)
        for token in tokens:
            if len(row) == context:
                rows.append(row)
                row = []
            if not row:
                row = [bos]
            row.append(token)
        if len(row) == context:
            rows.append(row)
            row = []
    return rows


def test_rows_are_packed_with_special_tokens(tokenizer: Any) -> None:
    rows = pretokenize_dataset(texts(), tokenizer, make_cfg())
    assert rows.column_names == ["input_ids"]
    assert rows[0]["input_ids"].dtype == torch.int64
    expected = packed_by_hand(tokenizer, 16, tokenizer.bos_token_id)
    assert rows[:]["input_ids"].tolist() == expected


def test_without_special_tokens(tokenizer: Any) -> None:
    cfg = make_cfg(begin_batch_token=None, sequence_separator_token=None, context_size=10)
    rows = pretokenize_dataset(texts(), tokenizer, cfg)
    flat = [token for text in TEXTS for token in tokenizer.encode(text)]
    assert rows[:]["input_ids"].flatten().tolist() == flat[: len(flat) // 10 * 10]


def test_the_tail_of_each_map_batch_is_dropped(tokenizer: Any) -> None:
    whole = pretokenize_dataset(texts(), tokenizer, make_cfg())
    halves = pretokenize_dataset(texts(), tokenizer, make_cfg(pretokenize_batch_size=12))
    parts = [
        pretokenize_dataset(texts().select(half), tokenizer, make_cfg())[:]["input_ids"]
        for half in (range(12), range(12, 24))
    ]
    assert halves[:]["input_ids"].tolist() == torch.cat(parts).tolist()
    assert whole[:]["input_ids"].tolist() != halves[:]["input_ids"].tolist()
    none = pretokenize_dataset(texts(), tokenizer, make_cfg(pretokenize_batch_size=None))
    assert none[:]["input_ids"].tolist() == whole[:]["input_ids"].tolist()


def test_several_processes_give_the_same_rows(tokenizer: Any) -> None:
    one = pretokenize_dataset(texts(), tokenizer, make_cfg(pretokenize_batch_size=12))
    two = pretokenize_dataset(texts(), tokenizer, make_cfg(pretokenize_batch_size=12, num_proc=2))
    assert one[:]["input_ids"].tolist() == two[:]["input_ids"].tolist()


def test_streaming_gives_the_same_rows_and_needs_one_process(tokenizer: Any) -> None:
    stream = texts().to_iterable_dataset()
    with pytest.warns(UserWarning, match="num_proc=4 has no effect on a streaming dataset"):
        rows = pretokenize_dataset(stream, tokenizer, make_cfg(num_proc=4))
    assert isinstance(rows, IterableDataset)
    got = [row["input_ids"] for row in rows]
    assert isinstance(got[0], torch.Tensor)
    assert torch.stack(got).tolist() == packed_by_hand(tokenizer, 16, tokenizer.bos_token_id)


def test_a_stream_that_does_not_know_its_columns(tokenizer: Any) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield from ({"text": text} for text in TEXTS)

    stream = IterableDataset.from_generator(rows)
    got = [r["input_ids"] for r in pretokenize_dataset(stream, tokenizer, make_cfg())]
    assert torch.stack(got).tolist() == packed_by_hand(tokenizer, 16, tokenizer.bos_token_id)


def test_shuffling_depends_on_the_seed(tokenizer: Any) -> None:
    def rows(**fields: Any) -> list[list[int]]:
        return pretokenize_dataset(texts(), tokenizer, make_cfg(**fields))[:]["input_ids"].tolist()

    plain = rows()
    assert rows(shuffle=True, seed=1) == rows(shuffle=True, seed=1)
    assert rows(shuffle=True, seed=1) != rows(shuffle=True, seed=2)
    assert sorted(rows(shuffle=True, seed=1)) == sorted(plain)


def test_a_slow_tokenizer_gives_the_same_rows(tokenizer: Any) -> None:
    class Slow:
        bos_token_id = tokenizer.bos_token_id

        def encode(self, text: str) -> list[int]:
            return tokenizer.encode(text)

    slow: Any = Slow()
    rows = pretokenize_dataset(texts(), slow, make_cfg())
    assert rows[:]["input_ids"].tolist() == packed_by_hand(tokenizer, 16, tokenizer.bos_token_id)


# -- the runner ------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_rows_and_metadata(tmp_path: Path, tokenizer: Any, streaming: bool) -> None:
    cfg = make_cfg(
        **text_files(tmp_path), streaming=streaming, save_path=str(tmp_path / "ü/rows"), seed=3,
        begin_sequence_token=7, shuffle=False,
    )  # fmt: skip
    returned = PretokenizeRunner(cfg).run()
    saved = load_from_disk(str(tmp_path / "ü/rows"))
    got = torch.stack([row["input_ids"] for row in returned])
    assert saved.with_format("torch")[:]["input_ids"].tolist() == got.tolist()
    assert json.loads((tmp_path / "ü/rows/sae_lens.json").read_text()) == {
        "sae_lens_version": __version__,
        "tokenizer_name": EMBEDDED_MODEL_NAME,
        "original_dataset": "json",
        "original_dataset_name": None,
        "original_split": "train",
        "original_data_files": cfg.data_files,
        "original_column_name": "text",
        "context_size": 16,
        "shuffled": False,
        "seed": 3,
        "begin_batch_token": "bos",
        "begin_sequence_token": 7,
        "sequence_separator_token": "bos",
    }
    assert [file.name for file in (tmp_path / "ü").iterdir()] == ["rows"], "nothing is left beside"


def test_an_older_dataset_in_the_folder_is_replaced(tmp_path: Path) -> None:
    cfg = make_cfg(**text_files(tmp_path), save_path=str(tmp_path / "rows"))
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "note.txt").write_text("mine")
    Dataset.from_dict({"a": list(range(9))}).save_to_disk(str(folder), num_shards=3)
    returned = PretokenizeRunner(cfg).run()
    assert len(load_from_disk(str(folder))) == len(returned)
    assert len(list(folder.glob("*.arrow"))) == 1
    assert (folder / "note.txt").read_text() == "mine"


def test_a_failure_while_saving_keeps_the_older_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_cfg(**text_files(tmp_path), save_path=str(tmp_path / "rows"))
    Dataset.from_dict({"a": list(range(9))}).save_to_disk(str(tmp_path / "rows"))

    def full_disk(self: Dataset, path: str) -> None:
        (Path(path) / "data-00000-of-00001.arrow").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "save_to_disk", full_disk)
    with pytest.raises(OSError, match="No space left"):
        PretokenizeRunner(cfg).run()
    assert load_from_disk(str(tmp_path / "rows"))["a"][:] == list(range(9))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows", "texts.jsonl"]


def test_tokens_train_like_text_tokenised_on_the_fly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same rows, same first batches of the store.

    The embedded tokenizer puts a BOS before every text, so it is told not to.
    """
    from sae_lens.activations.model_loading import load_model

    model = load_model("HookedTransformer", EMBEDDED_MODEL_NAME, "cpu")
    plain = load_embedded_tokenizer()
    encode = plain.encode

    class WithoutBos:
        bos_token_id = plain.bos_token_id

        def encode(self, text: str) -> list[int]:
            return encode(text, add_special_tokens=False)

    module = sys.modules["sae_lens.pretokenize_runner"]
    monkeypatch.setattr(module, "_load_tokenizer", lambda _: WithoutBos())
    cfg = make_cfg(**text_files(tmp_path), save_path=str(tmp_path / "rows"))
    PretokenizeRunner(cfg).run()

    def store(dataset: Any) -> ActivationsStore:
        return ActivationsStore(
            model, dataset, False, "blocks.0.hook_resid_pre", 0, None, 16, 128, 4, 0, 4, 32, True,
            "none", "cpu", "float32", seed=5,
        )  # fmt: skip

    with pytest.warns(UserWarning, match="not tokenized"):
        on_the_fly = store(texts())
    tokenised = store(str(tmp_path / "rows"))
    for _ in range(6):
        assert torch.equal(on_the_fly.next_batch(), tokenised.next_batch())


def test_the_embedded_text_by_name() -> None:
    rows = PretokenizeRunner(
        make_cfg(dataset_path=EMBEDDED_DATASET_NAME, split="heldout", context_size=512)
    ).run()
    assert rows[0]["input_ids"].shape == (512,)


def test_the_old_function_still_runs(tmp_path: Path) -> None:
    cfg = make_cfg(**text_files(tmp_path))
    with pytest.warns(DeprecationWarning, match=r"PretokenizeRunner\(cfg\)\.run\(\)"):
        old = pretokenize_runner(cfg)
    assert old[:]["input_ids"].tolist() == PretokenizeRunner(cfg).run()[:]["input_ids"].tolist()


# -- special tokens, metadata, errors --------------------------------------------------------------


def test_special_tokens_by_name(tokenizer: Any) -> None:
    assert get_special_token_from_cfg(None, tokenizer) is None
    assert get_special_token_from_cfg(123, tokenizer) == 123
    assert get_special_token_from_cfg("bos", tokenizer) == tokenizer.bos_token_id
    assert get_special_token_from_cfg("eos", tokenizer) == tokenizer.eos_token_id
    assert get_special_token_from_cfg("sep", tokenizer) is None
    with pytest.raises(ValueError, match="'pad' is unknown"):
        get_special_token_from_cfg("pad", tokenizer)  # type: ignore[arg-type]


def test_metadata_follows_the_config() -> None:
    cfg = make_cfg(dataset_path="a/b", dataset_name="c", column_name="d", split="e", shuffle=True)
    metadata = metadata_from_config(cfg)
    assert isinstance(metadata, PretokenizedDatasetMetadata)
    assert (metadata.original_dataset, metadata.original_dataset_name) == ("a/b", "c")
    assert (metadata.original_column_name, metadata.original_split) == ("d", "e")
    assert metadata.shuffled is True


def test_a_missing_column_is_named(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no column 'body'; it has text, source"):
        pretokenize_dataset(texts(), tokenizer, make_cfg(column_name="body"))


def test_too_little_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"24 texts .* do not fill one row of context_size=5000"):
        pretokenize_dataset(texts(), tokenizer, make_cfg(context_size=5000))


@pytest.mark.parametrize("kind", [DatasetDict, datasets.IterableDatasetDict])
def test_a_split_must_be_chosen(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    splits = kind({"train": texts(), "test": texts()})
    module = sys.modules["sae_lens.pretokenize_runner"]
    monkeypatch.setattr(module, "load_text_dataset", lambda *_, **__: splits)
    with pytest.raises(ValueError, match=r"has the splits train, test\. Set split"):
        PretokenizeRunner(make_cfg(dataset_path="a/b", split=None)).run()


def test_what_is_asked_of_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(path: str, trust_remote_code: Any = None, **kwargs: Any) -> Dataset:
        asked.update(kwargs, path=path, trust_remote_code=trust_remote_code)
        return texts()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    PretokenizeRunner(
        make_cfg(
            dataset_path="a/b",
            dataset_name="c",
            data_dir="d",
            data_files=["e"],
            split="f",
            dataset_trust_remote_code=True,
        )
    ).run()
    assert asked == {
        "path": "a/b", "name": "c", "data_dir": "d", "data_files": ["e"], "split": "f",
        "streaming": False, "trust_remote_code": True,
    }  # fmt: skip


# -- the hub ---------------------------------------------------------------------------------------


class Uploads:
    """Stands in for the hub: remembers what is pushed, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.pushed: list[dict[str, Any]] = []
        self.files: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        uploads = self

        def push_to_hub(dataset: Dataset, repo_id: str, **kwargs: Any) -> None:
            if uploads.failure is not None:
                raise uploads.failure
            uploads.pushed.append({"repo_id": repo_id, "rows": len(dataset), **kwargs})

        class Api:
            def upload_file(self, **kwargs: Any) -> None:
                uploads.files.append(kwargs)

        monkeypatch.setattr(Dataset, "push_to_hub", push_to_hub)
        monkeypatch.setattr(sys.modules["sae_lens.pretokenize_runner"], "HfApi", Api)

    def fail_with(self, status: int) -> None:
        import requests
        from huggingface_hub.errors import HfHubHTTPError

        response = requests.Response()
        response.status_code = status
        self.failure = HfHubHTTPError("no", response=response)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    return Uploads(monkeypatch)


@pytest.mark.parametrize("streaming", [False, True])
def test_pushing(tmp_path: Path, uploads: Uploads, streaming: bool) -> None:
    cfg = make_cfg(
        **text_files(tmp_path), hf_repo_id="me/rows", hf_num_shards=3, hf_revision="other",
        hf_is_private_repo=True, streaming=streaming,
    )  # fmt: skip
    rows = PretokenizeRunner(cfg).run()
    assert uploads.pushed == [
        {"repo_id": "me/rows", "rows": len(list(rows)), "num_shards": 3, "private": True,
         "revision": "other"}
    ]  # fmt: skip
    (file,) = uploads.files
    assert (file["path_in_repo"], file["repo_type"]) == ("sae_lens.json", "dataset")
    assert (file["repo_id"], file["revision"]) == ("me/rows", "other")
    assert json.loads(file["path_or_fileobj"])["tokenizer_name"] == EMBEDDED_MODEL_NAME


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, PermissionError, "answered 401: log in"),
        (403, PermissionError, "answered 403: log in"),
        (404, FileNotFoundError, "answered 404: check the owner"),
        (429, ConnectionError, "answered 429: too many requests"),
        (500, ConnectionError, "answered 500; try again later"),
    ],
)
def test_a_hub_that_says_no(
    tmp_path: Path, uploads: Uploads, status: int, kind: type[Exception], message: str
) -> None:
    uploads.fail_with(status)
    cfg = make_cfg(**text_files(tmp_path), hf_repo_id="me/rows", save_path=str(tmp_path / "rows"))
    with pytest.raises(kind, match=f"me/rows failed: the hub {message}.*Nothing is lost"):
        PretokenizeRunner(cfg).run()
    assert len(load_from_disk(str(tmp_path / "rows"))) > 0
    assert uploads.files == []
    cfg.save_path = None
    with pytest.raises(kind, match="set save_path to keep it"):
        PretokenizeRunner(cfg).run()


def test_an_unreachable_hub(uploads: Uploads) -> None:
    uploads.failure = ConnectionError("no route")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        push_to_hugging_face_hub(texts(), make_cfg(hf_repo_id="me/rows"))
    with pytest.raises(ValueError, match="hf_repo_id is not set"):
        push_to_hugging_face_hub(texts(), make_cfg())
