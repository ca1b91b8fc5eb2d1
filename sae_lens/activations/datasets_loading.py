"""Datasets by path, and whether tokens of a dataset fit a model's tokenizer."""

from __future__ import annotations

import json
import os
from inspect import signature
from pathlib import Path
from typing import Any

from sae_lens.constants import EMBEDDED_DATASET_NAME


def load_text_dataset(
    path: str,
    split: str | None = "train",
    streaming: bool = False,
    trust_remote_code: bool | None = None,
    name: str | None = None,
    data_dir: str | None = None,
    data_files: Any = None,
) -> Any:
    """Load a dataset: the embedded one, a folder written by `save_to_disk`, or one from the hub.

    Args:
        path: what `datasets.load_dataset` takes, a folder of `Dataset.save_to_disk`, or the name of
            the embedded text.
        split: the part to load; None for all of them.
        streaming: read rows when they are needed. Without effect on data that lies on this machine
            already.
        trust_remote_code: passed on only when it is not None and this version of the datasets
            library still has it.
        name: configuration of the dataset.
        data_dir: folder within the dataset.
        data_files: files within the dataset.

    Raises:
        ValueError: when the path is empty, or the split is not in a saved folder of splits.
    """
    if not path:
        raise ValueError("The dataset path is empty. Give a name on the hub or a folder.")
    if path == EMBEDDED_DATASET_NAME:
        from sae_lens.activations.embedded import load_embedded_text

        return load_embedded_text(split=split or "train")

    import datasets

    if _was_saved_to_disk(path):
        saved = datasets.load_from_disk(path)
        if split is None or isinstance(saved, datasets.Dataset):
            return saved
        if split not in saved:
            raise ValueError(
                f"The dataset in {path} has the splits {list(saved)}, but {split!r} was asked for."
            )
        return saved[split]
    arguments: dict[str, Any] = {"split": split, "streaming": streaming}
    optional = {"name": name, "data_dir": data_dir, "data_files": data_files}
    arguments.update({key: value for key, value in optional.items() if value is not None})
    supported = signature(datasets.load_dataset).parameters
    if trust_remote_code is not None and "trust_remote_code" in supported:
        arguments["trust_remote_code"] = trust_remote_code
    return datasets.load_dataset(path, **arguments)


def validate_pretokenized_dataset_tokenizer(dataset_path: str, model_tokenizer: Any) -> None:
    """Check that a dataset was tokenised with the tokenizer of the model.

    Datasets made by this library carry a file `sae_lens.json` that names their tokenizer. When
    there is none, or it cannot be read (no network, a local path, an unknown tokenizer), nothing
    can be said and nothing happens.

    Raises:
        ValueError: when the vocabularies differ.
    """
    tokenizer_name = _tokenizer_of_dataset(dataset_path)
    if tokenizer_name is None:
        return
    try:
        from transformers import AutoTokenizer

        dataset_tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    except Exception:  # whatever keeps a tokenizer from loading only means: nothing to compare
        return
    if dataset_tokenizer.get_vocab() != model_tokenizer.get_vocab():
        model_name = getattr(model_tokenizer, "name_or_path", "") or type(model_tokenizer).__name__
        raise ValueError(
            f"The dataset {dataset_path} was tokenised with {tokenizer_name}, whose vocabulary "
            f"differs from that of the model's tokenizer {model_name}. Tokenise the dataset with "
            "the model's tokenizer, or use another model."
        )


def special_token_ids(tokenizer: Any) -> list[int]:
    """All ids that a tokenizer treats as special, in ascending order."""
    ids: set[int] = set()
    for name in dir(tokenizer):
        if name.endswith("_token_id") and isinstance(value := getattr(tokenizer, name, None), int):
            ids.add(value)
    for tokens in getattr(tokenizer, "special_tokens_map", {}).values():
        for token in tokens if isinstance(tokens, list) else [tokens]:
            token_id = tokenizer.convert_tokens_to_ids(token)
            if isinstance(token_id, int):
                ids.add(token_id)
    return sorted(ids)


def _was_saved_to_disk(path: str) -> bool:
    folder = Path(path)
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _tokenizer_of_dataset(dataset_path: str) -> str | None:
    if os.path.exists(dataset_path):
        return None
    try:
        from huggingface_hub import hf_hub_download

        file = hf_hub_download(dataset_path, "sae_lens.json", repo_type="dataset")
        return json.loads(Path(file).read_text(encoding="utf-8")).get("tokenizer_name")
    except Exception:  # no such file, no such repository, no network: each means "unknown"
        return None


def split_held_out(dataset: Any, n_rows: int) -> tuple[Any, Any]:
    """Set the first `n_rows` rows of a dataset aside.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`.
        n_rows: how many rows to hold out.

    Returns:
        (the rest, to train on; the rows held out).

    Raises:
        ValueError: when nothing would be left, or nothing is held out.
    """
    if n_rows < 1:
        raise ValueError(f"n_rows is {n_rows}; hold out at least one row.")
    if hasattr(dataset, "select"):
        if n_rows >= len(dataset):
            raise ValueError(
                f"Cannot hold out {n_rows} of {len(dataset)} rows: none would be left to train on."
            )
        return (
            dataset.select(range(n_rows, len(dataset))),
            dataset.select(range(n_rows)),
        )
    return dataset.skip(n_rows), dataset.take(n_rows)
