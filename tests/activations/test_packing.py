from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens.activations.packing import ConcatPacker, TruncatingPacker
from sae_lens.tokenization_and_batching import _add_tokens_to_batch, concat_and_batch_sequences
from tests.helpers import golden_cases, load_golden

BATCH, SEQUENCE, SEPARATOR = 999, 998, 997


def pack(*sequences: list[int], context_size: int = 5, **ids: int) -> list[list[int]]:
    tensors = iter(torch.tensor(s, dtype=torch.long) for s in sequences)
    return [r.tolist() for r in concat_and_batch_sequences(tensors, context_size, **ids)]


@pytest.mark.parametrize("path", golden_cases("tokens"), ids=lambda p: p.stem)
def test_rows_equal_the_reference(path: Path) -> None:
    case, tensors = load_golden(path)
    sequences = iter(tensors["in/flat"].split(case["lengths"]))
    rows = list(concat_and_batch_sequences(sequences, case["context_size"], **case["kwargs"]))
    assert torch.equal(torch.stack(rows), tensors["out/rows"])


@pytest.mark.parametrize(
    ("row", "ids", "want"),
    [
        (None, {"begin_batch_token_id": BATCH}, [BATCH, 0, 1, 2, 3]),
        (
            None,
            {"begin_batch_token_id": BATCH, "begin_sequence_token_id": SEQUENCE},
            [BATCH, SEQUENCE, 0, 1, 2],
        ),
        ([0, 1, 2], {"sequence_separator_token_id": SEPARATOR}, [0, 1, 2, SEPARATOR, 0]),
        (
            [0, 1],
            {"sequence_separator_token_id": SEPARATOR, "begin_sequence_token_id": SEQUENCE},
            [0, 1, SEPARATOR, SEQUENCE, 0],
        ),
        (None, {"begin_batch_token_id": 0}, [0, 1, 2, 3, 4]),
    ],
)
def test_one_step(row: list[int] | None, ids: dict[str, int], want: list[int]) -> None:
    batch = None if row is None else torch.tensor(row)
    filled, _ = _add_tokens_to_batch(batch, torch.arange(10), 0, 5, True, **ids)
    assert filled.tolist() == want


def test_the_offset_advances_by_the_open_slots_even_past_the_end() -> None:
    filled, offset = _add_tokens_to_batch(None, torch.arange(2), 0, 5, True, BATCH)
    assert (filled.tolist(), offset) == ([BATCH, 0, 1], 4)


def test_sequences_are_laid_end_to_end_and_the_tail_is_dropped() -> None:
    assert pack([1, 2, 3], [], [4, 5, 6, 7, 8], context_size=3) == [[1, 2, 3], [4, 5, 6]]


def test_a_begin_sequence_token_that_does_not_fit_opens_the_next_row() -> None:
    rows = pack(
        [1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        sequence_separator_token_id=SEPARATOR,
        begin_sequence_token_id=SEQUENCE,
    )
    assert rows == [[SEQUENCE, 1, 2, 3, 4], [SEQUENCE, 5, 6, 7, 8]]
    rows = pack(
        [1, 2, 3],
        [5, 6, 7, 8, 9],
        sequence_separator_token_id=SEPARATOR,
        begin_sequence_token_id=SEQUENCE,
    )
    assert rows == [[SEQUENCE, 1, 2, 3, SEPARATOR], [SEQUENCE, 5, 6, 7, 8]]


def test_a_begin_sequence_token_that_just_fits_is_not_repeated() -> None:
    rows = pack([1, 2, 3, 4], [5, 6, 7, 8, 9], begin_sequence_token_id=SEQUENCE, context_size=6)
    assert rows == [[SEQUENCE, 1, 2, 3, 4, SEQUENCE]]
    rows = pack([1, 2, 3, 4], [5, 6, 7, 8, 9, 10], begin_sequence_token_id=SEQUENCE, context_size=6)
    assert rows[1:] == [[5, 6, 7, 8, 9, 10]]


@pytest.mark.parametrize(
    ("context_size", "ids"),
    [
        (1, {"begin_batch_token_id": BATCH}),
        (2, {"begin_batch_token_id": BATCH, "begin_sequence_token_id": SEQUENCE}),
        (0, {}),
    ],
)
def test_a_context_without_room_for_text_is_refused(context_size: int, ids: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"context_size is {context_size}.*at least"):
        pack([1, 2, 3], context_size=context_size, **ids)


def test_a_sequence_with_two_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one-dimensional.*\(1, 3\)"):
        list(concat_and_batch_sequences(iter([torch.zeros(1, 3)]), 2))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=8),
    context_size=st.integers(4, 9),
    begin_batch=st.sampled_from([None, BATCH]),
    begin_sequence=st.sampled_from([None, SEQUENCE]),
    separator=st.sampled_from([None, SEPARATOR]),
)
def test_no_token_is_lost_and_every_sequence_is_announced(
    lengths: list[int],
    context_size: int,
    begin_batch: int | None,
    begin_sequence: int | None,
    separator: int | None,
) -> None:
    flat = torch.arange(sum(lengths))
    packer = ConcatPacker(context_size, begin_batch, begin_sequence, separator)
    rows: list[Tensor] = []
    for sequence in flat.split(lengths) if lengths else []:
        packer.push(sequence)
        while (row := packer.pop()) is not None:
            rows.append(row)
    unfinished = packer.state_dict().get("row", torch.empty(0, dtype=torch.long))
    stream = [t for row in [*rows, unfinished] for t in row.tolist()]
    assert [t for t in stream if t < SEPARATOR] == flat.tolist()
    assert all(len(row) == context_size for row in rows)
    if begin_batch is not None:
        assert all(row[0] == begin_batch for row in rows)
    if begin_sequence is not None:
        assert stream.count(begin_sequence) == sum(length > 0 for length in lengths)


def test_packing_goes_on_from_a_saved_state() -> None:
    whole = ConcatPacker(4, BATCH, SEQUENCE, SEPARATOR)
    whole.push(torch.arange(10))
    whole.pop()
    resumed = ConcatPacker(4, BATCH, SEQUENCE, SEPARATOR)
    resumed.load_state_dict(whole.state_dict())
    for packer in (whole, resumed):
        rows = []
        while (row := packer.pop()) is not None:
            rows.append(row.tolist())
        packer.push(torch.tensor([50, 51, 52]))
        rows.append(packer.pop().tolist())  # pyright: ignore[reportOptionalMemberAccess]
        assert rows == [[BATCH, 2, 3, 4], [BATCH, 5, 6, 7], [BATCH, 8, 9, SEPARATOR]]


def test_truncating_gives_one_row_per_sequence_and_skips_short_ones() -> None:
    packer = TruncatingPacker(3, begin_token_id=BATCH)
    rows = []
    for sequence in ([1, 2, 3, 4], [5], [BATCH, 6, 7], []):
        packer.push(torch.tensor(sequence, dtype=torch.long))
        rows.append(packer.pop())
    assert [None if r is None else r.tolist() for r in rows] == [
        [BATCH, 1, 2],
        None,
        [BATCH, 6, 7],
        None,
    ]
