"""A dataset as batches of token rows for a model, epoch after epoch."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens.activations.datasets_loading import (
    load_text_dataset,
    split_held_out,
    validate_pretokenized_dataset_tokenizer,
)
from sae_lens.activations.model_adapters import model_device, vocabulary_size
from sae_lens.activations.packing import ConcatPacker, TruncatingPacker
from sae_lens.activations.tokens import (
    Packer,
    RowReader,
    TokenStream,
    as_token_row,
    find_tokens_column,
    is_huggingface_dataset,
    number_of_rows,
    own_pass,
    packer_state,
)


class TokenSource:
    """Rows of `context_size` tokens out of tokenised or raw data, epoch after epoch."""

    def __init__(
        self,
        model: Any,
        dataset: Any,
        streaming: bool,
        context_size: int,
        store_batch_size_prompts: int,
        total_training_tokens: int,
        prepend_bos: bool,
        device: torch.device | str,
        dataset_trust_remote_code: bool | None,
        disable_concat_sequences: bool,
    ):
        """Open the dataset and find its column; see `ActivationsStore` for the arguments."""
        self.model = model
        self.streaming = streaming
        self.context_size = context_size
        self.store_batch_size_prompts = store_batch_size_prompts
        self.total_training_tokens = total_training_tokens
        self.prepend_bos = prepend_bos
        self.device = torch.device(device)
        self.dataset_trust_remote_code = dataset_trust_remote_code
        self.disable_concat_sequences = disable_concat_sequences
        self.held_out: Any = None
        self._open_dataset(dataset)
        self._rewind_tokens()

    def pause_prefetching(self) -> None:
        """Nothing to do here; stores that make batches ahead bring their thread to rest."""

    @property
    def iterable_sequences(self) -> Iterator[Int[Tensor, " context"]]:
        """The current pass over the data as rows of tokens; begun when it is first asked for."""
        if self._stream is None:
            self._stream = self._new_stream()
        return self._stream

    @iterable_sequences.setter
    def iterable_sequences(self, stream: Iterator[Tensor]) -> None:
        self._stream = stream

    def get_batch_tokens(
        self, batch_size: int | None = None, raise_at_epoch_end: bool = False
    ) -> Int[Tensor, "batch context"]:
        """The next rows of tokens, on the model's device.

        Args:
            batch_size: by default `store_batch_size_prompts`.
            raise_at_epoch_end: when the data end within the batch, raise instead of going on from
                the start. Rows collected by then are kept for the next call.

        Raises:
            StopIteration: at the epoch's end, if asked for.
            ValueError: when the data give no rows, or an id is beyond the model's vocabulary.
        """
        self.pause_prefetching()
        wanted = batch_size or self.store_batch_size_prompts
        just_restarted = False
        while len(self._held_rows) < wanted:
            try:
                if self._at_end:
                    raise StopIteration
                self._held_rows.append(next(self.iterable_sequences))
                just_restarted = False
            except StopIteration:
                self._stream, self._at_end = None, False
                if raise_at_epoch_end:
                    raise StopIteration from None
                if just_restarted:
                    raise ValueError(
                        f"The dataset gives no row of context_size={self.context_size} tokens. Use "
                        "longer texts or more of them, or a smaller context_size."
                    ) from None
                just_restarted = True
            except BaseException:
                self._reopen_stream()
                raise
        return self._take_held_rows(wanted)

    def shuffle_input_dataset(self, seed: int, buffer_size: int = 1) -> None:
        """Replace the dataset by its shuffled version and read that from the start.

        Args:
            seed: of the shuffling.
            buffer_size: how many rows of a streaming dataset to mix; 1 mixes only its shards.
        """
        self.pause_prefetching()
        if is_huggingface_dataset(self.dataset):
            self.dataset = self.dataset.shuffle(seed=seed)
        else:
            self.dataset = self.dataset.shuffle(seed=seed, buffer_size=buffer_size)
        self.iterable_dataset = iter(own_pass(self.dataset))
        self._stream = None

    def reset_input_dataset(self) -> None:
        """Read tokens from the start of the dataset again."""
        self.pause_prefetching()
        self.iterable_dataset = iter(own_pass(self.dataset))
        self._stream = None
        self._held_rows = []

    def hold_out(self, n_rows: int) -> None:
        """Set the first rows of the data aside as `held_out`, and read the others from their start.

        Args:
            n_rows: how many rows of the dataset; 0 sets none aside.

        Raises:
            ValueError: when none would be left.
        """
        if n_rows == 0:
            return
        self.pause_prefetching()
        self.dataset, self.held_out = split_held_out(self.dataset, n_rows)
        self.iterable_dataset = iter(own_pass(self.dataset))
        self._rewind_tokens()

    def _iterate_raw_dataset(self) -> Generator[Any, None, None]:
        """The values of the dataset's column."""
        return self._counted(RowReader(self.dataset, self.tokens_column))

    def _iterate_raw_dataset_tokens(self) -> Generator[Int[Tensor, " n_tokens"], None, None]:
        """The texts of the dataset as tokens, each [n_tokens], on the store's device."""
        for text in self._iterate_raw_dataset():
            yield self._encode_text(text).to(self.device)

    def _iterate_tokenized_sequences(self) -> Generator[Int[Tensor, " context"], None, None]:
        """The dataset as rows of `context_size` tokens, on the store's device."""
        for row in self._new_stream():
            yield row.to(self.device)

    def _rewind_tokens(self) -> None:
        self.n_dataset_processed = 0
        self._stream: Any = None
        self._held_rows: list[Tensor] = []  # read, but not yet handed out
        self._at_end = False  # whether these are the last of the epoch, and were given back

    def _open_dataset(self, dataset: Any) -> None:
        path = dataset if isinstance(dataset, str) else None
        if path is not None:
            dataset = load_text_dataset(
                path, streaming=self.streaming, trust_remote_code=self.dataset_trust_remote_code
            )
        self.dataset: Any = dataset
        self.tokens_column, self.is_dataset_tokenized, first = find_tokens_column(dataset)
        if self.is_dataset_tokenized:
            self._prepare_tokenized(len(first), path)
        else:
            warnings.warn(
                "Dataset is not tokenized. Pre-tokenizing will improve performance and allows more "
                "control over special tokens; see PretokenizeRunner.",
                stacklevel=4,
            )

    def _prepare_tokenized(self, row_length: int, path: str | None) -> None:
        """Check the rows' length, the amount of data and the tokenizer; read as tensors."""
        if row_length < self.context_size:
            raise ValueError(
                f"The rows of the tokenised dataset have {row_length} tokens, which is fewer than "
                f"context_size={self.context_size}. Lower context_size to {row_length}, or "
                "tokenise the data again with a longer context."
            )
        if row_length != self.context_size:
            warnings.warn(
                f"The rows of the tokenised dataset have {row_length} tokens, but context_size is "
                f"{self.context_size}: the last {row_length - self.context_size} of each row are "
                "discarded.",
                RuntimeWarning,
                stacklevel=4,
            )
        if path is None:
            self._warn_of_several_epochs()
        elif getattr(self.model, "tokenizer", None) is not None:
            validate_pretokenized_dataset_tokenizer(path, self.model.tokenizer)
        if is_huggingface_dataset(self.dataset):
            self.dataset = self.dataset.with_format("torch", columns=[self.tokens_column])

    def _warn_of_several_epochs(self) -> None:
        if not is_huggingface_dataset(self.dataset):
            return
        n_tokens = len(self.dataset) * self.context_size
        if n_tokens < self.total_training_tokens:
            warnings.warn(
                f"The training dataset has {n_tokens} tokens, fewer than the "
                f"{self.total_training_tokens} to train on: there will be several epochs, and "
                "samples are used more than once.",
                stacklevel=5,
            )

    def _new_stream(self, state: dict[str, Tensor] | None = None) -> TokenStream:
        """A pass over the data: from its start, or from where `state` was taken."""
        reader = RowReader(self.dataset, self.tokens_column, state)
        in_progress = state is not None and "in_progress" in state
        encode = as_token_row if self.is_dataset_tokenized else self._encode_text
        stream = TokenStream(reader, self._counted(reader, in_progress), encode, self._new_packer())
        if state is not None:
            stream.packer.load_state_dict(packer_state(state))
        return stream

    def _new_packer(self) -> Packer:
        if self.is_dataset_tokenized:
            return TruncatingPacker(self.context_size, warn_of_short=True)
        tokenizer = getattr(self.model, "tokenizer", None)
        bos = getattr(tokenizer, "bos_token_id", None) if self.prepend_bos else None
        if self.disable_concat_sequences:
            return TruncatingPacker(self.context_size, begin_token_id=bos)
        return ConcatPacker(
            self.context_size, begin_batch_token_id=bos, sequence_separator_token_id=bos
        )

    def _counted(self, reader: RowReader, in_progress: bool = False) -> Generator[Any, None, None]:
        """The reader's values; a row counts as processed once the next one is asked for."""
        for value in reader:
            self.n_dataset_processed += in_progress
            in_progress = True
            yield value
        self.n_dataset_processed += in_progress

    def _encode_text(self, text: str) -> Int[Tensor, " n_tokens"]:
        tokens = self.model.to_tokens(
            text, truncate=False, move_to_device=False, prepend_bos=False
        ).squeeze(0)
        if tokens.ndim != 1:
            raise ValueError(
                f"to_tokens gave a tensor of shape {tuple(tokens.shape)} for one text; expected "
                "one row of tokens."
            )
        return tokens

    def _take_held_rows(self, n: int) -> Int[Tensor, "n context"]:
        rows, self._held_rows = self._held_rows[:n], self._held_rows[n:]
        tokens = torch.stack(rows)
        limit = vocabulary_size(self.model)
        if limit is not None and (int(tokens.max()) >= limit or int(tokens.min()) < 0):
            wrong = int(tokens.max()) if int(tokens.max()) >= limit else int(tokens.min())
            raise ValueError(
                f"The dataset has the token id {wrong}, but the model's vocabulary ends at "
                f"{limit - 1}: the data were tokenised for another model. Tokenise them with this "
                "model's tokenizer, or use the model they were made for."
            )
        return tokens.to(model_device(self.model))

    def _give_back_rows(self, tokens: Int[Tensor, "n context"], at_end: bool) -> None:
        """Rows that were handed out come next again; `at_end`: they end the epoch."""
        self._held_rows = [*tokens.cpu(), *self._held_rows]
        self._at_end = at_end

    def _reopen_stream(self) -> None:
        """Put a stream in which something was raised, and which is over thereby, to its place."""
        if isinstance(self._stream, TokenStream) and iter(self.dataset) is not self.dataset:
            in_progress = {"in_progress": torch.tensor(True)} if self._stream.reader.taken else {}
            self._stream = self._new_stream({**self._stream.state_dict(), **in_progress})

    def _token_state(self) -> dict[str, Tensor]:
        """Where the tokens stand; empty at the very start of the data."""
        state: dict[str, Tensor] = {}
        if self._held_rows:
            state["held_rows"] = torch.stack(self._held_rows)
        if self._at_end:
            state["at_end"] = torch.tensor(True)
        if isinstance(self._stream, TokenStream) and self._stream.reader.taken > 0:
            state.update(self._stream.state_dict())
            state["in_progress"] = torch.tensor(True)
        elif self.n_dataset_processed > 0:
            state["taken"] = torch.tensor(0)
        return state

    def _load_token_state(self, state: dict[str, Tensor], n_dataset_processed: int) -> None:
        """Go on from `_token_state`; without one, behind `n_dataset_processed` rows."""
        self._rewind_tokens()
        self.n_dataset_processed = n_dataset_processed
        if "taken" not in state and n_dataset_processed > 0:
            n_rows = number_of_rows(self.dataset)
            skipped = n_dataset_processed % n_rows if n_rows else n_dataset_processed
            state = {**state, "taken": torch.tensor(skipped)}
        if "held_rows" in state:
            self._held_rows = list(state["held_rows"].cpu())
        self._at_end = "at_end" in state
        if int(state.get("taken", 0)) > 0:
            self._stream = self._new_stream(state)
