from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import transformers
from datasets import Dataset, DatasetDict

from sae_lens.activations.datasets_loading import load_text_dataset
from sae_lens.constants import EMBEDDED_DATASET_NAME
from sae_lens.training.activations_store import (
    _get_special_token_ids,
    validate_pretokenized_dataset_tokenizer,
)
from tests.activations.fakes import make_store, numbered_rows


def vocabulary(*words: str) -> SimpleNamespace:
    return SimpleNamespace(
        get_vocab=lambda: {w: i for i, w in enumerate(words)}, name_or_path="mine"
    )


class TestLoading:
    def test_the_embedded_text_needs_no_network(self) -> None:
        dataset = load_text_dataset(EMBEDDED_DATASET_NAME, split="heldout", streaming=True)
        assert "text" in dataset.column_names

    def test_a_folder_written_by_save_to_disk(self, tmp_path: Path) -> None:
        numbered_rows(3).save_to_disk(str(tmp_path / "one"))
        assert load_text_dataset(str(tmp_path / "one"))[2]["tokens"] == [10, 11, 12, 13, 14]
        splits = DatasetDict({"train": numbered_rows(3), "test": numbered_rows(4)})
        splits.save_to_disk(str(tmp_path / "many"))
        assert len(load_text_dataset(str(tmp_path / "many"), split="test")) == 4
        with pytest.raises(ValueError, match=r"splits \['train', 'test'\].*'dev'"):
            load_text_dataset(str(tmp_path / "many"), split="dev")

    def test_a_store_by_path(self, tmp_path: Path) -> None:
        numbered_rows().save_to_disk(str(tmp_path / "rows"))
        store = make_store(dataset=str(tmp_path / "rows"), total_training_tokens=10**6)
        assert store.get_batch_tokens(1).tolist() == [[0, 1, 2, 3, 4]]

    @pytest.mark.parametrize(("trust", "supported"), [(True, True), (True, False), (None, True)])
    def test_trust_is_passed_only_where_it_is_known(
        self, monkeypatch: pytest.MonkeyPatch, trust: bool | None, supported: bool
    ) -> None:
        seen: dict[str, Any] = {}

        def older(path: str, split: Any, streaming: bool, trust_remote_code: Any = None) -> None:
            seen.update(path=path, split=split, streaming=streaming, trust=trust_remote_code)

        def newer(path: str, split: Any, streaming: bool, **config: Any) -> None:
            assert "trust_remote_code" not in config
            seen.update(path=path, split=split, streaming=streaming, trust=None)

        monkeypatch.setattr(datasets, "load_dataset", older if supported else newer)
        load_text_dataset("some/data", streaming=True, trust_remote_code=trust)
        expected = trust if supported else None
        assert seen == {"path": "some/data", "split": "train", "streaming": True, "trust": expected}

    def test_further_choices_are_passed_when_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[str, Any] = {}
        monkeypatch.setattr(datasets, "load_dataset", lambda path, **kwargs: seen.update(kwargs))
        load_text_dataset("some/data", split=None, name="en", data_files=["a.txt"])
        assert seen == {"split": None, "streaming": False, "name": "en", "data_files": ["a.txt"]}

    def test_an_empty_path_is_refused(self) -> None:
        with pytest.raises(ValueError, match="dataset path is empty"):
            load_text_dataset("")


class TestTokenizerCheck:
    @pytest.fixture
    def metadata(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        content: dict[str, Any] = {"tokenizer_name": "theirs"}

        def download(repo_id: str, filename: str, repo_type: str) -> str:
            assert (repo_id, filename, repo_type) == ("some/data", "sae_lens.json", "dataset")
            file = tmp_path / "sae_lens.json"
            file.write_text(json.dumps(content))
            return str(file)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return content

    def test_different_vocabularies_are_refused(
        self, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            transformers.AutoTokenizer, "from_pretrained", lambda name: vocabulary("a", "b")
        )
        validate_pretokenized_dataset_tokenizer("some/data", vocabulary("a", "b"))
        with pytest.raises(ValueError, match="tokenised with theirs.*mine"):
            validate_pretokenized_dataset_tokenizer("some/data", vocabulary("b", "a"))
        metadata.clear()
        validate_pretokenized_dataset_tokenizer("some/data", vocabulary("b", "a"))

    def test_an_unknown_tokenizer_says_nothing(
        self, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(name: str) -> None:
            raise OSError("no such tokenizer")

        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
        validate_pretokenized_dataset_tokenizer("some/data", vocabulary("a"))

    @pytest.mark.parametrize("path", ["nobody/nothing", "not a name!!", "../somewhere"])
    def test_what_cannot_be_reached_says_nothing(self, path: str, tmp_path: Path) -> None:
        validate_pretokenized_dataset_tokenizer(path, vocabulary("a"))
        validate_pretokenized_dataset_tokenizer(str(tmp_path), vocabulary("a"))

    def test_the_store_asks_for_data_by_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        module = "sae_lens.activations.token_source"
        monkeypatch.setattr(f"{module}.load_text_dataset", lambda *a, **k: numbered_rows())
        monkeypatch.setattr(
            f"{module}.validate_pretokenized_dataset_tokenizer", lambda path, t: asked.append(path)
        )
        make_store(dataset="some/data")
        make_store(dataset=numbered_rows())
        assert asked == ["some/data"]


def test_special_tokens_are_all_that_the_tokenizer_names() -> None:
    tokenizer = SimpleNamespace(
        bos_token_id=5,
        eos_token_id=None,
        special_tokens_map={"pad_token": "<pad>", "additional_special_tokens": ["<a>", "<b>"]},
        convert_tokens_to_ids=lambda token: {"<pad>": 9, "<a>": 2, "<b>": 5}[token],
    )
    assert _get_special_token_ids(tokenizer) == [2, 5, 9]


def test_streaming_rows_without_an_index_can_be_read_again() -> None:
    store = make_store(dataset=Dataset.from_dict({"tokens": [[1] * 5] * 3}).to_iterable_dataset())
    assert store.get_batch_tokens(7).shape == (7, 5)
