"""`PretokenizeRunnerConfig`: how a text dataset becomes rows of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SpecialToken = int | Literal["bos", "eos", "sep"] | None


@dataclass
class PretokenizeRunnerConfig:
    """A run that tokenises a text dataset once, for many trainings.

    Attributes:
        tokenizer_name: the tokenizer, by its name on the hub, or the embedded model's.
        dataset_path: the text: a name on the hub, a folder, or the embedded text.
        dataset_trust_remote_code: allow the data set's own loading code where it needs it.
        split: the split to tokenise.
        data_files: files within the data set.
        data_dir: folder within the data set.
        num_proc: processes that tokenise; has no effect on streaming data.
        context_size: tokens per row.
        column_name: column that holds the text.
        shuffle: shuffle the rows of tokens.
        seed: seed of the shuffling.
        streaming: read the text while tokenising instead of loading it first.
        pretokenize_batch_size: texts per step; what does not fill a row at its end is dropped.
        begin_batch_token: first token of every row: an id, bos, eos, sep or none.
        begin_sequence_token: token before every text.
        sequence_separator_token: token between two texts in one row.
        save_path: folder to which the rows are saved.
        hf_repo_id: data set repository to which the rows are pushed.
        hf_num_shards: files in that repository.
        hf_revision: branch that is pushed to.
        hf_is_private_repo: make the repository private.
        dataset_name: configuration of the data set, where it has several.
    """

    tokenizer_name: str = "gpt2"
    dataset_path: str = ""
    dataset_trust_remote_code: bool | None = None
    split: str | None = "train"
    data_files: list[str] | None = None
    data_dir: str | None = None
    num_proc: int = 4
    context_size: int = 128
    column_name: str = "text"
    shuffle: bool = True
    seed: int | None = None
    streaming: bool = False
    pretokenize_batch_size: int | None = 1000

    begin_batch_token: SpecialToken = "bos"
    begin_sequence_token: SpecialToken = None
    sequence_separator_token: SpecialToken = "bos"

    save_path: str | None = None
    hf_repo_id: str | None = None
    hf_num_shards: int = 64
    hf_revision: str = "main"
    hf_is_private_repo: bool = False
    dataset_name: str | None = None
