"""Finding active and largest entries, piece by piece, against the dense search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens.kernels import active_entries, top_entries
from sae_lens.kernels.active_entries import ActiveEntries
from sae_lens.kernels.sorting import stable_order
from sae_lens.kernels.workspace import Workspace

few = settings(max_examples=40, deadline=None)


def assert_same(found: ActiveEntries, wanted: ActiveEntries) -> None:
    assert torch.equal(found.active.rows, wanted.active.rows)
    torch.testing.assert_close(found.active.dense(found.hidden), wanted.active.dense(wanted.hidden))


@few
@given(
    batch=st.integers(1, 12),
    d_sae=st.integers(1, 70),
    with_bias=st.booleans(),
    elements=st.sampled_from((1, 64, 1 << 20)),
    seed=st.integers(0, 1000),
)
def test_active_entries(batch: int, d_sae: int, with_bias: bool, elements: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, W = torch.randn(batch, 5), torch.randn(5, d_sae)
    bias = torch.randn(d_sae) if with_bias else None
    lower = torch.zeros(d_sae) if with_bias else torch.rand(d_sae)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active_entries, "_ELEMENTS_PER_PIECE", elements)
        found = active_entries.active_entries(x, W, bias, lower, Workspace())
    assert_same(found, active_entries.reference(x, W, bias, lower, Workspace()))


def test_what_is_no_number_is_found() -> None:
    x, W = torch.ones(2, 3), torch.ones(3, 8)
    W[0, 5] = torch.nan
    found = active_entries.active_entries(x, W, None, torch.full((8,), 100.0), Workspace())
    assert found.active.cols.tolist() == [5, 5]


@few
@given(
    batch=st.integers(1, 8),
    d_sae=st.integers(8, 150),
    k=st.integers(1, 8),
    over_batch=st.booleans(),
    with_scale=st.booleans(),
    elements=st.sampled_from((1, 256, 1 << 20)),
    seed=st.integers(0, 1000),
)
def test_top_entries(
    batch: int,
    d_sae: int,
    k: int,
    over_batch: bool,
    with_scale: bool,
    elements: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    # offset rows make the selection over the batch differ from that of each row
    x, W, bias = torch.randn(batch, 5), torch.randn(5, d_sae), torch.randn(d_sae)
    scale = torch.rand(d_sae) if with_scale else None
    k = k * batch if over_batch else k
    arguments = (x, W, bias, scale, k, over_batch, Workspace())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_entries, "_ELEMENTS_PER_PIECE", elements)
        found = top_entries.top_entries(*arguments)
    wanted = top_entries.reference(*arguments)
    assert_same(found, wanted)
    if not over_batch:
        assert torch.equal(torch.bincount(found.active.rows), torch.full((batch,), k))


@pytest.mark.parametrize("over_batch", [False, True])
def test_many_equal_entries(over_batch: bool) -> None:
    x, W, bias = torch.zeros(4, 3), torch.randn(3, 64), torch.ones(64)
    k = 20 if over_batch else 5
    found = top_entries.top_entries(x, W, bias, None, k, over_batch, Workspace())
    assert len(found.active) == 20
    assert torch.equal(found.hidden, torch.ones(20))


def test_only_positive_entries_count_over_the_batch() -> None:
    x, W = torch.ones(2, 1), -torch.ones(1, 32)
    W[0, 7] = 2.0
    found = top_entries.top_entries(x, W, torch.zeros(32), None, 10, True, Workspace())
    assert found.active.cols.tolist() == [7, 7]


@pytest.mark.parametrize("with_scale", [False, True])
@pytest.mark.parametrize("over_batch", [False, True])
def test_other_devices_are_not_asked_how_many_entries_there_are(
    over_batch: bool, with_scale: bool
) -> None:
    """On the meta device, where nothing has a value, whoever asks for one gets an error."""
    with torch.device("meta"):
        x, W, bias = torch.randn(6, 5), torch.randn(5, 40), torch.randn(40)
        scale = torch.rand(40) if with_scale else None
    k = 12 if over_batch else 3
    found = top_entries.top_entries(x, W, bias, scale, k, over_batch, Workspace(), True)
    assert len(found.active) == len(found.hidden) == (12 if over_batch else 18)
    assert found.active.shape == (6, 40)


def test_selection_by_magnitude() -> None:
    x, W, bias = torch.randn(6, 5), torch.randn(5, 200), torch.randn(200)
    arguments = (x, W, bias, torch.rand(200), 7, False, Workspace(), True)
    found = top_entries.top_entries(*arguments)
    assert_same(found, top_entries.reference(*arguments))
    assert (found.hidden < 0).any() and (found.hidden > 0).any()


@few
@given(
    n=st.integers(0, 300),
    n_kinds=st.sampled_from((1, 7, 1 << 16, (1 << 16) + 1, 1 << 20, 1 << 32)),
    seed=st.integers(0, 1000),
)
def test_stable_order(n: int, n_kinds: int, seed: int) -> None:
    torch.manual_seed(seed)
    # few different ones among many, so that there are equal ones
    keys = torch.randint(0, n_kinds, (20,))[torch.randint(0, 20, (n,))]
    assert torch.equal(stable_order(keys, n_kinds), torch.sort(keys, stable=True).indices)
