"""Entries in a number known beforehand, and how that number is chosen."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens.kernels import entry_capacity
from sae_lens.kernels.active_entries import active_entries
from sae_lens.kernels.entry_capacity import EntryCapacity
from sae_lens.kernels.filled_entries import filled_entries, filled_positions, running_count
from sae_lens.kernels.workspace import Workspace
from sae_lens.late_numbers import LateNumber

few = settings(max_examples=60, deadline=None)


class FixedCapacity(EntryCapacity):
    """Room that a test chooses."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def room(self, n_positions: int) -> int:
        return min(self.n, n_positions)


@few
@given(
    n_rows=st.integers(1, 9),
    n_cols=st.integers(1, 40),
    share=st.sampled_from((0.0, 0.05, 0.4, 1.0)),
    spare=st.integers(-3, 400),
    seed=st.integers(0, 1000),
)
def test_positions(n_rows: int, n_cols: int, share: float, spare: int, seed: int) -> None:
    torch.manual_seed(seed)
    mask = torch.rand(n_rows, n_cols) < share
    wanted = mask.view(-1).nonzero().squeeze(1)
    capacity = min(max(len(wanted) + spare, 0), mask.numel())
    flat = filled_positions(running_count(mask), mask.sum(), capacity)
    assert len(flat) == capacity
    assert (flat.diff() > 0).all() and ((flat >= 0) & (flat < mask.numel())).all()
    n = min(capacity, len(wanted))
    assert torch.equal(flat[mask.view(-1)[flat]], wanted[:n])


def test_what_fills_the_room_is_spread_over_rows_and_columns() -> None:
    torch.manual_seed(0)
    mask = torch.rand(64, 500) < 0.01
    flat = filled_positions(running_count(mask), mask.sum(), 4000)
    assert torch.bincount(flat // 500, minlength=64).max() < 100
    assert torch.bincount(flat % 500, minlength=500).max() < 40


@few
@given(
    batch=st.integers(1, 12),
    d_sae=st.integers(1, 70),
    with_bias=st.booleans(),
    shift=st.sampled_from((-100.0, 0.0, 2.0)),
    spare=st.sampled_from((0, 1, 10, 10_000)),
    seed=st.integers(0, 1000),
)
def test_it_holds_the_entries_and_others_below_the_threshold(
    batch: int, d_sae: int, with_bias: bool, shift: float, spare: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x, W = torch.randn(batch, 5), torch.randn(5, d_sae)
    bias = torch.randn(d_sae) + shift if with_bias else None
    lower = torch.zeros(d_sae) if with_bias else torch.rand(d_sae) - shift
    wanted = active_entries(x, W, bias, lower, Workspace())
    capacity = FixedCapacity(len(wanted.active) + spare)
    found = filled_entries(x, W, bias, lower, Workspace(), capacity)
    assert len(found.active) == min(len(wanted.active) + spare, batch * d_sae)
    assert int(found.active.count) == len(wanted.active)  # type: ignore[arg-type]
    assert not found.active.is_incomplete
    assert float(found.active.density) == pytest.approx(wanted.active.density)
    is_entry = found.hidden > lower[found.active.cols]
    assert torch.equal(found.active.rows[is_entry], wanted.active.rows)
    assert torch.equal(found.active.cols[is_entry], wanted.active.cols)
    assert torch.equal(found.hidden[is_entry], wanted.hidden)


def test_what_is_no_number_is_found() -> None:
    x, W = torch.ones(2, 3), torch.ones(3, 8)
    W[0, 5] = torch.nan
    lower = torch.full((8,), 100.0)
    found = filled_entries(x, W, None, lower, Workspace(), FixedCapacity(2))
    assert found.active.cols.tolist() == [5, 5]


def test_too_little_room_is_noted() -> None:
    x, W = torch.ones(2, 3), torch.ones(3, 8)
    lower = torch.zeros(8)
    found = filled_entries(x, W, None, lower, Workspace(), FixedCapacity(15))
    assert found.active.is_incomplete and int(found.active.count) == 16  # type: ignore[arg-type]
    assert len(found.active) == 15


def test_other_devices_are_not_asked_how_many_entries_there_are() -> None:
    with torch.device("meta"):
        x, W, bias, lower = torch.randn(6, 5), torch.randn(5, 40), torch.randn(40), torch.zeros(40)
    positions = filled_positions(running_count((x @ W) > lower), bias.sum().long(), 33)
    assert positions.shape == (33,)


# -- how much room there is -----------------------------------------------------------------------

N = 1 << 20


def after(counts: list[int]) -> EntryCapacity:
    capacity = EntryCapacity()
    for count in counts:
        capacity.room_for(torch.tensor(count), N)
    return capacity


def test_the_first_batch_is_counted() -> None:
    assert EntryCapacity().room(N) is None
    for count in (0, 1, 5000, 300_000):
        room = EntryCapacity().room_for(torch.tensor(count), N)
        assert 1.5 * count + 256 <= room <= 1.2 * (1.5 * count + 256)
    assert EntryCapacity().room_for(torch.tensor(N), N) == N


def test_room_follows_the_counts_of_two_steps_before() -> None:
    capacity = after([1000, 1000, 1000])
    before = capacity.room(N)
    rooms = [capacity.room_for(torch.tensor(10_000), N) for _ in range(4)]
    assert rooms[:2] == [before, before]
    assert all(room > 15_000 for room in rooms[2:])
    # it shrinks when the last batch of that size is forgotten
    rooms = [capacity.room_for(torch.tensor(1000), N) for _ in range(12)]
    assert rooms[8] > 15_000 and rooms[-1] == before


def test_only_numbers_of_two_steps_before_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LateNumber] = []

    class Watched(LateNumber):
        def __init__(self, scalar: torch.Tensor) -> None:
            super().__init__(scalar)
            made.append(self)

        def value(self) -> float:
            assert len(made) == 1 or made.index(self) <= len(made) - 2
            return super().value()

    monkeypatch.setattr(entry_capacity, "LateNumber", Watched)
    after([1000] * 6)
    assert len(made) == 7  # the first batch is counted at once


def test_another_number_of_tokens_gets_room_in_proportion() -> None:
    capacity = after([100_000] * 3)
    assert capacity.room(N) == pytest.approx(150_000, rel=0.1)
    assert capacity.room(N // 4) == pytest.approx(150_000 / 4, rel=0.1)


def test_few_different_sizes() -> None:
    rooms = {after([count] * 3).room(N) for count in range(10_000, 20_000, 10)}
    assert len(rooms) < 20


def test_batches_without_enough_room_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    capacity = after([1000, 1000, 30_000, 2000])
    assert capacity.n_left_out == 0
    with caplog.at_level(logging.WARNING):
        capacity.room(N)
        capacity.room_for(torch.tensor(2000), N)
    assert capacity.n_left_out == 1
    (message,) = caplog.messages
    assert "room for 1792 active entries, and it had 30000 or more" in message


def test_a_saved_one_goes_on_as_it_would_have() -> None:
    capacity = after([1000, 2000, 30_000, 500])
    other = EntryCapacity()
    other.load_state_dict(capacity.state_dict())
    for count in (700, 40_000, 800, 900, 10_000):
        assert other.room_for(torch.tensor(count), N) == capacity.room_for(torch.tensor(count), N)
    assert other.n_left_out == capacity.n_left_out > 0


def test_copies_are_new() -> None:
    capacity = after([1000])
    for other in (copy.deepcopy(capacity), pickle.loads(pickle.dumps(capacity))):
        assert isinstance(other, EntryCapacity) and other.room(N) is None
