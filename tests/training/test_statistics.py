from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae_lens.training import statistics
from sae_lens.training.statistics import FiringStatistics, count_active, count_firing


def acts() -> Tensor:
    torch.manual_seed(0)
    values = torch.relu(torch.randn(37, 12) - 0.5)
    values[:, 3] = 0
    return values


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize("layout", ["dense", "coo", "uncoalesced", "csr", "explicit zeros"])
def test_counts_do_not_depend_on_the_layout(layout: str) -> None:
    dense = acts()
    given = dense
    if layout == "coo":
        given = dense.to_sparse()
    elif layout == "uncoalesced":
        sparse = dense.to_sparse()
        twice = torch.cat([sparse.indices(), sparse.indices()], dim=1)
        given = torch.sparse_coo_tensor(twice, sparse.values().repeat(2) / 2, dense.shape)
    elif layout == "csr":
        given = dense.to_sparse_csr()
    elif layout == "explicit zeros":
        full = torch.ones_like(dense).to_sparse()
        given = torch.sparse_coo_tensor(full.indices(), dense.flatten(), dense.shape)
    want = (dense > 0).sum(0)
    assert count_firing(given).tolist() == want.tolist()
    assert count_active(given).item() == want.sum().item()


def test_dense_counting_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_ELEMENTS_PER_PIECE", 50)  # four rows at a time, then one
    assert count_firing(acts()).tolist() == (acts() > 0).sum(0).tolist()


def test_activations_that_require_grad_can_be_counted() -> None:
    assert count_firing(acts().requires_grad_()).sum() > 0


def test_densities_and_silence() -> None:
    seen = FiringStatistics(3, "cpu")
    assert seen.densities.tolist() == [0, 0, 0]
    seen.update(torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 0.0]]))
    seen.update(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert seen.n_tokens == 6
    assert seen.densities.tolist() == pytest.approx([4 / 6, 0, 1 / 6])
    assert seen.steps_since_fired.tolist() == [0, 2, 1]
    assert seen.silent_for_more_than(1).tolist() == [False, True, False]
    seen.reset_window()
    assert seen.densities.tolist() == [0, 0, 0]
    assert seen.steps_since_fired.tolist() == [0, 2, 1]


def test_state_goes_through_a_round_trip() -> None:
    first = FiringStatistics(12, "cpu")
    first.update(acts())
    second = FiringStatistics(12, "cpu")
    second.load_state_dict(first.state_dict())
    first.update(acts())  # must not reach into the second
    assert second.n_tokens == 37
    assert second.firing_counts.tolist() == (acts() > 0).sum(0).tolist()
    assert second.steps_since_fired[3] == 1
