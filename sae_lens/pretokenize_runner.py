"""`PretokenizeRunner`: texts as rows of exactly `context_size` tokens, once for all runs."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi

from sae_lens._version import __version__
from sae_lens.activations.dataset_publishing import push_dataset
from sae_lens.activations.datasets_loading import load_text_dataset
from sae_lens.activations.packing import concat_and_batch_sequences
from sae_lens.activations.saved_dataset import save_dataset
from sae_lens.config.pretokenize import PretokenizeRunnerConfig, SpecialToken
from sae_lens.constants import EMBEDDED_MODEL_NAME

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

METADATA_FILENAME = "sae_lens.json"
_COLUMN = "input_ids"


@dataclass
class PretokenizedDatasetMetadata:
    """How a dataset was tokenised, as written to `sae_lens.json` beside it."""

    sae_lens_version: str
    tokenizer_name: str
    original_dataset: str
    original_split: str | None
    original_data_files: list[str] | None
    context_size: int
    shuffled: bool
    seed: int | None
    begin_batch_token: SpecialToken
    begin_sequence_token: SpecialToken
    sequence_separator_token: SpecialToken
    original_dataset_name: str | None = None
    original_column_name: str | None = None


def metadata_from_config(cfg: PretokenizeRunnerConfig) -> PretokenizedDatasetMetadata:
    """The metadata of the dataset that a run with this config makes."""
    return PretokenizedDatasetMetadata(
        sae_lens_version=__version__,
        tokenizer_name=cfg.tokenizer_name,
        original_dataset=cfg.dataset_path,
        original_split=cfg.split,
        original_data_files=cfg.data_files,
        context_size=cfg.context_size,
        shuffled=cfg.shuffle,
        seed=cfg.seed,
        begin_batch_token=cfg.begin_batch_token,
        begin_sequence_token=cfg.begin_sequence_token,
        sequence_separator_token=cfg.sequence_separator_token,
        original_dataset_name=cfg.dataset_name,
        original_column_name=cfg.column_name,
    )


def get_special_token_from_cfg(
    cfg_token: SpecialToken, tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """The id of a special token as configured, or None for none.

    Raises:
        ValueError: when it is neither an id nor one of the known names.
    """
    if cfg_token is None or isinstance(cfg_token, int):
        return cfg_token
    if cfg_token in ("bos", "eos", "sep"):
        return getattr(tokenizer, f"{cfg_token}_token_id")
    raise ValueError(
        f"The special token {cfg_token!r} is unknown; give a token id, 'bos', 'eos', 'sep' or None."
    )


def pretokenize_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    cfg: PretokenizeRunnerConfig,
) -> Any:
    """Tokenise the texts of a dataset and pack them into rows of `cfg.context_size` tokens.

    What does not fill a row at the end of each map batch (`cfg.pretokenize_batch_size` texts) is
    dropped.

    Returns:
        A dataset of the same kind with the one column `input_ids`, in torch format.

    Raises:
        ValueError: when there is no such column, or the texts do not fill a single row.
    """
    from datasets import Dataset, Features, Sequence, Value

    columns = _column_names(dataset)
    if cfg.column_name not in columns:
        raise ValueError(
            f"The dataset has no column {cfg.column_name!r}; it has {', '.join(columns)}. Set "
            "column_name to the one that holds the text."
        )
    in_memory = isinstance(dataset, Dataset)
    pack = partial(
        _pack_texts,
        tokenizer=tokenizer,
        column_name=cfg.column_name,
        context_size=cfg.context_size,
        begin_batch_token_id=get_special_token_from_cfg(cfg.begin_batch_token, tokenizer),
        begin_sequence_token_id=get_special_token_from_cfg(cfg.begin_sequence_token, tokenizer),
        sequence_separator_token_id=get_special_token_from_cfg(
            cfg.sequence_separator_token, tokenizer
        ),
    )
    arguments: dict[str, Any] = {
        "batched": True,
        "batch_size": cfg.pretokenize_batch_size,
        "remove_columns": columns,
        "features": Features({_COLUMN: Sequence(Value("int64"))}),
    }
    if in_memory:
        n_texts = len(dataset)
        processes = max(1, min(cfg.num_proc, n_texts))
        tokenized = dataset.map(pack, num_proc=processes if processes > 1 else None, **arguments)
        if len(tokenized) == 0:
            raise ValueError(
                f"The {n_texts} texts of the dataset do not fill one row of "
                f"context_size={cfg.context_size} tokens within a batch of "
                f"pretokenize_batch_size={cfg.pretokenize_batch_size} texts (the {processes} "
                "processes each have a part of them). Use a smaller context_size or num_proc, "
                "larger batches, or more text."
            )
    else:
        if cfg.num_proc > 1:
            warnings.warn(
                f"num_proc={cfg.num_proc} has no effect on a streaming dataset, which one process "
                "reads. Set num_proc=1, or streaming=False to use several.",
                stacklevel=2,
            )
        tokenized = dataset.map(pack, **arguments)
    if cfg.shuffle:
        tokenized = tokenized.shuffle(seed=cfg.seed)
    return tokenized.with_format("torch")  # the one column there is


def push_to_hugging_face_hub(
    dataset: Dataset | IterableDataset, cfg: PretokenizeRunnerConfig
) -> None:
    """Push a tokenised dataset and its metadata to `cfg.hf_repo_id`, both to `cfg.hf_revision`.

    Raises:
        ValueError: without a repository.
        PermissionError: when the hub does not accept the login, or its rights.
        FileNotFoundError: when it knows no such owner.
        ConnectionError: when it is busy, fails, or cannot be reached.
    """
    if not cfg.hf_repo_id:
        raise ValueError("hf_repo_id is not set; there is nowhere to push the dataset to.")
    push_dataset(
        dataset,
        HfApi(),
        repo_id=cfg.hf_repo_id,
        num_shards=cfg.hf_num_shards,
        private=cfg.hf_is_private_repo,
        revision=cfg.hf_revision,
        description=asdict(metadata_from_config(cfg)),
        description_filename=METADATA_FILENAME,
        kept_at=cfg.save_path,
    )


class PretokenizeRunner:
    """Tokenises a dataset, saves it, pushes it: as configured."""

    def __init__(self, cfg: PretokenizeRunnerConfig):
        self.cfg = cfg

    def run(self) -> Any:
        """Tokenise the dataset, save it if there is a path, push it if there is a repository.

        Returns:
            The tokenised dataset, in torch format.

        Raises:
            ValueError: when no split was chosen, or the dataset has no such column, or too little
                text.
        """
        cfg = self.cfg
        dataset = load_text_dataset(
            cfg.dataset_path,
            split=cfg.split,
            streaming=cfg.streaming,
            trust_remote_code=cfg.dataset_trust_remote_code,
            name=cfg.dataset_name,
            data_dir=cfg.data_dir,
            data_files=cfg.data_files,
        )
        if isinstance(dataset, dict):
            raise ValueError(
                f"The dataset {cfg.dataset_path!r} has the splits {', '.join(map(str, dataset))}. "
                "Set split to one of them."
            )
        tokenizer = _load_tokenizer(cfg.tokenizer_name)
        # Long texts are cut into rows here, so the model's limit is no concern of the tokenizer.
        tokenizer.model_max_length = sys.maxsize
        tokenized = pretokenize_dataset(dataset, tokenizer, cfg)
        if cfg.save_path is None and cfg.hf_repo_id is None:
            return tokenized
        with tempfile.TemporaryDirectory() as scratch:
            whole = _materialized(tokenized, scratch)
            if cfg.save_path is not None:
                metadata = asdict(metadata_from_config(cfg))
                save_dataset(whole, Path(cfg.save_path), {METADATA_FILENAME: metadata})
            if cfg.hf_repo_id is not None:
                push_to_hugging_face_hub(whole, cfg)
        return tokenized


def pretokenize_runner(cfg: PretokenizeRunnerConfig) -> Any:
    """Deprecated: use `PretokenizeRunner(cfg).run()`, which this returns the result of."""
    warnings.warn(
        "pretokenize_runner(cfg) is deprecated; use PretokenizeRunner(cfg).run().",
        DeprecationWarning,
        stacklevel=2,
    )
    return PretokenizeRunner(cfg).run()


def _pack_texts(
    batch: dict[str, list[Any]],
    tokenizer: Any,
    column_name: str,
    context_size: int,
    **special_token_ids: int | None,
) -> dict[str, list[Any]]:
    """One map batch of texts as rows of tokens."""
    texts = batch[column_name]
    if getattr(tokenizer, "is_fast", False):
        # Gives what `encode` gives for each text, but many at once.
        encoded = tokenizer(texts, return_attention_mask=False)["input_ids"] if texts else []
    else:
        encoded = [tokenizer.encode(text) for text in texts]
    sequences = (torch.tensor(ids, dtype=torch.long) for ids in encoded)
    rows = concat_and_batch_sequences(sequences, context_size, **special_token_ids)
    return {_COLUMN: [row.numpy() for row in rows]}


def _column_names(dataset: Any) -> list[str]:
    if dataset.column_names is not None:
        return list(dataset.column_names)
    # A streaming dataset may not know its columns before its first row.
    return list(next(iter(dataset), {}))


def _load_tokenizer(name: str) -> Any:
    if name == EMBEDDED_MODEL_NAME:
        from sae_lens.activations.embedded import load_embedded_tokenizer

        return load_embedded_tokenizer()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def _materialized(tokenized: Any, scratch: str) -> Any:
    """A dataset that can be saved: streaming ones are written to a folder, which may go later."""
    from datasets import Dataset

    if isinstance(tokenized, Dataset):
        return tokenized
    plain = tokenized.with_format(None)
    # A folder of its own: the shared one would give an earlier result for the same stream.
    return Dataset.from_generator(
        _rows, features=tokenized.features, cache_dir=scratch, gen_kwargs={"dataset": plain}
    )


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    yield from dataset
