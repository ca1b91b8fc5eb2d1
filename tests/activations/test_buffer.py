from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens.activations import buffer as buffer_module
from sae_lens.activations.buffer import ShufflingBuffer


def make_buffer(capacity: int = 10, dtype: torch.dtype = torch.float32) -> ShufflingBuffer:
    return ShufflingBuffer(capacity, 2, dtype, torch.device("cpu"))


def rows(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop, dtype=torch.float32)[:, None].repeat(1, 2)


def first_values(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1, 2)[:, 0].int().tolist()


def test_rows_come_out_in_the_order_they_went_in_until_they_are_mixed() -> None:
    buffer = make_buffer()
    buffer.add(rows(0, 6))
    assert first_values(buffer.take(2)) == [0, 1]
    buffer.add(rows(6, 12))
    assert first_values(buffer.take(10)) == list(range(2, 12))
    assert (len(buffer), buffer.n_free) == (0, 10)


def test_what_is_taken_is_not_overwritten_by_what_comes_later() -> None:
    buffer = make_buffer(4)
    buffer.add(rows(0, 4))
    taken = buffer.take(4)
    buffer.add(rows(4, 8))
    assert first_values(taken) == [0, 1, 2, 3]


def test_more_rows_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="11 rows do not fit: 10 of 10"):
        make_buffer().add(rows(0, 11))


def test_pinned_rows_are_not_mixed() -> None:
    buffer = make_buffer(100)
    buffer.add(rows(0, 3))
    buffer.n_pinned = 3
    buffer.add(rows(3, 100))
    buffer.mix(torch.Generator().manual_seed(0))
    served = first_values(buffer.take(100))
    assert served[:3] == [0, 1, 2]
    assert served != list(range(100))
    assert sorted(served) == list(range(100))


@pytest.mark.parametrize("shape", [(12, 2), (3, 4, 2), (3, 2, 2, 2)])
def test_rows_of_any_shape_are_converted_and_scaled(shape: tuple[int, ...]) -> None:
    buffer = make_buffer(12, torch.float64)
    buffer.add(rows(0, 12).view(shape).bfloat16(), scale=0.5)
    assert torch.equal(buffer.take(12), rows(0, 12).double() * 0.5)


def test_rows_that_are_not_contiguous_are_copied_in_their_order() -> None:
    buffer = make_buffer()
    source = rows(0, 12).view(3, 4, 2)[:, 1:3]
    buffer.add(source)
    assert first_values(buffer.take(6)) == [1, 2, 5, 6, 9, 10]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=6),
    seed=st.integers(0, 99),
)
def test_arranging_keeps_the_order(steps: list[tuple[int, int, bool]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    plain, arranged = make_buffer(23), make_buffer(23)
    number = 0
    chunk, buffer_module._CHUNK = buffer_module._CHUNK, 3
    try:
        for n_add, n_take, mix in steps:
            n_add = min(n_add, plain.n_free)
            for buffer in (plain, arranged):
                buffer.add(rows(number, number + n_add))
            number += n_add
            if mix:
                state = generator.get_state()
                plain.mix(generator)
                generator.set_state(state)
                arranged.mix(generator)
            view = arranged.arranged()
            assert view.data_ptr() == arranged.arranged().data_ptr()
            assert first_values(view) == first_values(plain._storage()[plain.queue])
            n_take = min(n_take, len(plain))
            assert torch.equal(plain.take(n_take), arranged.take(n_take))
    finally:
        buffer_module._CHUNK = chunk
