"""From token sequences of any length to rows of exactly `context_size` tokens.

Two ways: `ConcatPacker` lays sequences end to end, with special tokens between them, and cuts the
result into rows; `TruncatingPacker` makes one row of each sequence. Both are fed one sequence at a
time and keep what is left over as plain values, so that a stream can be stopped and resumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator

import torch
from torch import Tensor


class ConcatPacker:
    """Lays sequences end to end and cuts them into rows; no token of a sequence is lost."""

    def __init__(
        self,
        context_size: int,
        begin_batch_token_id: int | None = None,
        begin_sequence_token_id: int | None = None,
        sequence_separator_token_id: int | None = None,
    ):
        inserted = {begin_batch_token_id, begin_sequence_token_id} - {None}
        if context_size <= len(inserted):
            raise ValueError(
                f"context_size is {context_size}, but every row begins with {len(inserted)} "
                "inserted special tokens and must have room for a token of text after them. "
                f"Use a context_size of at least {len(inserted) + 1}."
            )
        self.context_size = context_size
        self.begin_batch_token_id = begin_batch_token_id
        self.begin_sequence_token_id = begin_sequence_token_id
        self.sequence_separator_token_id = sequence_separator_token_id
        self._row: Tensor | None = None  # the row being filled
        self._rest: Tensor | None = None  # what is not yet placed of the current sequence
        self._at_start = False  # whether `_rest` still needs its begin_sequence token

    def push(self, tokens: Tensor) -> None:
        """Take the next sequence, [n_tokens]; before that, `pop` must have given None."""
        _require_one_dimension(tokens)
        if tokens.numel() > 0:
            self._rest, self._at_start = tokens, True

    def pop(self) -> Tensor | None:
        """The next full row, [context_size], or None when more tokens are needed."""
        if self._rest is None:
            return None
        prefix = _prefix(
            self._row,
            self._rest[0].item(),
            self._at_start,
            self.begin_batch_token_id,
            self.begin_sequence_token_id,
            self.sequence_separator_token_id,
        )
        space = self.context_size - (0 if self._row is None else len(self._row))
        row, offset = _add_tokens_to_batch(
            self._row,
            self._rest,
            0,
            self.context_size,
            self._at_start,
            self.begin_batch_token_id,
            self.begin_sequence_token_id,
            self.sequence_separator_token_id,
        )
        # A begin_sequence token that no longer fitted comes first in the next row.
        self._at_start = self._at_start and len(prefix) > space
        self._rest = self._rest[offset:] if offset < len(self._rest) else None
        if len(row) < self.context_size:
            self._row = row
            return None
        self._row = None
        return row

    def state_dict(self) -> dict[str, Tensor]:
        """The unfinished row and the rest of the current sequence, where there are any."""
        state = {}
        if self._row is not None:
            state["row"] = self._row.clone()
        if self._rest is not None:
            state["rest"] = self._rest.clone()
            state["at_start"] = torch.tensor(self._at_start)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict` of a packer with the same settings."""
        self._row = state.get("row")
        self._rest = state.get("rest")
        self._at_start = bool(state.get("at_start", False))


class TruncatingPacker:
    """One row per sequence: its first `context_size` tokens; sequences too short are skipped."""

    def __init__(
        self, context_size: int, begin_token_id: int | None = None, warn_of_short: bool = False
    ):
        self.context_size = context_size
        self.begin_token_id = begin_token_id
        self._warn_of_short = warn_of_short
        self._row: Tensor | None = None

    def push(self, tokens: Tensor) -> None:
        """Take the next sequence, [n_tokens]."""
        _require_one_dimension(tokens)
        if self.begin_token_id is not None and (
            tokens.numel() == 0 or tokens[0].item() != self.begin_token_id
        ):
            tokens = torch.cat([tokens.new_tensor([self.begin_token_id]), tokens])
        if len(tokens) >= self.context_size:
            self._row = tokens[: self.context_size]
        elif self._warn_of_short:
            self._warn_of_short = False
            warnings.warn(
                f"The dataset has rows with fewer tokens ({len(tokens)}) than context_size "
                f"({self.context_size}); such rows are skipped.",
                RuntimeWarning,
                stacklevel=2,
            )

    def pop(self) -> Tensor | None:
        """The row of the last sequence pushed, [context_size], once; None when it was too short."""
        row, self._row = self._row, None
        return row

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a row is handed out before the next sequence is taken."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Counterpart of `state_dict`."""


@torch.no_grad()
def concat_and_batch_sequences(
    tokens_iterator: Iterator[Tensor],
    context_size: int,
    begin_batch_token_id: int | None = None,
    begin_sequence_token_id: int | None = None,
    sequence_separator_token_id: int | None = None,
) -> Generator[Tensor, None, None]:
    """Lay token sequences end to end and cut them into rows.

    A special token is inserted only where the token after it is a different one. The tail that
    does not fill a row is dropped.

    Args:
        tokens_iterator: sequences, each [n_tokens].
        context_size: tokens per row.
        begin_batch_token_id: first token of every row.
        begin_sequence_token_id: goes directly before every sequence.
        sequence_separator_token_id: goes between two sequences in the same row.

    Yields:
        Rows, each [context_size].

    Raises:
        ValueError: when a sequence is not one-dimensional, or when `context_size` leaves no room
            for text after the tokens inserted at a row's start.
    """
    packer = ConcatPacker(
        context_size, begin_batch_token_id, begin_sequence_token_id, sequence_separator_token_id
    )
    for tokens in tokens_iterator:
        packer.push(tokens)
        while (row := packer.pop()) is not None:
            yield row


def _add_tokens_to_batch(
    batch: Tensor | None,
    tokens: Tensor,
    offset: int,
    context_size: int,
    is_start_of_sequence: bool,
    begin_batch_token_id: int | None = None,
    begin_sequence_token_id: int | None = None,
    sequence_separator_token_id: int | None = None,
) -> tuple[Tensor, int]:
    """Fill a row with what fits of `tokens[offset:]`, special tokens first.

    Returns:
        The longer row, and `offset` advanced by the slots that were open for tokens (it may run
        past the end of `tokens`).
    """
    prefix = _prefix(
        batch,
        int(tokens[offset].item()),
        is_start_of_sequence,
        begin_batch_token_id,
        begin_sequence_token_id,
        sequence_separator_token_id,
    )
    space = context_size - (0 if batch is None else len(batch))
    prefix = prefix[:space]
    open_slots = space - len(prefix)
    parts = [] if batch is None else [batch]
    if prefix:
        parts.append(tokens.new_tensor(prefix))
    parts.append(tokens[offset : offset + open_slots])
    return torch.cat(parts), offset + open_slots


def _prefix(
    row: Tensor | None,
    next_token: int | float,
    is_start_of_sequence: bool,
    begin_batch_token_id: int | None,
    begin_sequence_token_id: int | None,
    sequence_separator_token_id: int | None,
) -> list[int]:
    """The special tokens that go before `next_token`; none doubles the token after it."""
    prefix: list[int] = []
    if (
        is_start_of_sequence
        and begin_sequence_token_id is not None
        and begin_sequence_token_id != next_token
    ):
        prefix = [begin_sequence_token_id]
        next_token = begin_sequence_token_id
    before = begin_batch_token_id if row is None else sequence_separator_token_id
    if before is not None and before != next_token:
        prefix = [before, *prefix]
    return prefix


def _require_one_dimension(tokens: Tensor) -> None:
    if tokens.ndim != 1:
        raise ValueError(
            f"Token sequences must be one-dimensional, but one has shape {tuple(tokens.shape)}. "
            "Pass each sequence on its own, without a batch axis."
        )
