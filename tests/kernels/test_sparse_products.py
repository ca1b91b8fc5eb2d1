"""Each fast product against its dense reference, over shapes, dtypes and densities."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens.kernels import entry_products, sparse_decode, weight_gradient
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.autograd import sparse_decode_with_norms
from sae_lens.kernels.workspace import Workspace

DTYPES = (torch.float32, torch.float64)

cases = given(
    batch=st.integers(1, 9),
    d_sae=st.integers(1, 40),
    d_in=st.integers(1, 9),
    density=st.sampled_from((0.0, 0.05, 0.5, 1.0)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
few = settings(max_examples=40, deadline=None)


def random_entries(
    batch: int, d_sae: int, density: float, dtype: torch.dtype
) -> tuple[ActiveSet, Tensor]:
    mask = torch.rand(batch, d_sae) < density
    rows, cols = mask.nonzero(as_tuple=True)
    return ActiveSet(rows, cols, mask.shape), torch.randn(len(rows), dtype=dtype)


@few
@cases
def test_products_equal_their_references(
    batch: int, d_sae: int, d_in: int, density: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    active, values = random_entries(batch, d_sae, density, dtype)
    W, G = torch.randn(d_sae, d_in, dtype=dtype), torch.randn(batch, d_in, dtype=dtype)
    torch.testing.assert_close(
        sparse_decode.sparse_decode(values, active, W), sparse_decode.reference(values, active, W)
    )
    torch.testing.assert_close(
        entry_products.entry_products(G, W, active), entry_products.reference(G, W, active)
    )
    several = torch.stack((values, -2 * values, values.square()))
    for n_sets in (1, 3):
        together = sparse_decode.decode_together(several[:n_sets], active, W)
        apart = [sparse_decode.reference(each, active, W) for each in several[:n_sets]]
        torch.testing.assert_close(together, torch.stack(apart))
    wanted = weight_gradient.reference(values, active, G, torch.empty_like(W))
    for out in (torch.full_like(W, torch.nan), torch.full_like(W.T, torch.nan).contiguous().T):
        filled = weight_gradient.weight_gradient(values, active, G, out)
        assert filled.data_ptr() == out.data_ptr()
        torch.testing.assert_close(filled, wanted)
    added = weight_gradient.weight_gradient(values, active, G, W.clone(), accumulate=True)
    torch.testing.assert_close(
        added, weight_gradient.reference(values, active, G, W.clone(), accumulate=True)
    )


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_bfloat16_products_are_those_of_float32_rounded(density: float) -> None:
    torch.manual_seed(0)
    active, values = random_entries(8, 30, density, torch.bfloat16)
    W, G = torch.randn(30, 5).bfloat16(), torch.randn(8, 5).bfloat16()
    exact = (values.float(), W.float(), G.float())

    def close(got: Tensor, want: Tensor) -> None:
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, want.bfloat16())

    close(sparse_decode.sparse_decode(values, active, W),
          sparse_decode.reference(exact[0], active, exact[1]))  # fmt: skip
    close(entry_products.entry_products(G, W, active),
          entry_products.reference(exact[2], exact[1], active))  # fmt: skip
    for accumulate in (False, True):
        want = weight_gradient.reference(exact[0], active, exact[2], exact[1].clone(), accumulate)
        for out in (W.clone(), W.T.contiguous().T):
            close(weight_gradient.weight_gradient(values, active, G, out, accumulate), want)


@few
@cases
def test_orders_of_an_active_set(
    batch: int, d_sae: int, d_in: int, density: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    active, values = random_entries(batch, d_sae, density, dtype)
    dense = active.dense(values)
    assert torch.equal(active.csr(values).to_dense(), dense)
    assert torch.equal(active.transposed_csr(values).to_dense(), dense.T)
    assert torch.equal(active.sparse_coo(values).to_dense(), dense)
    torch.testing.assert_close(active.sum_rows(values), dense.sum(1))
    torch.testing.assert_close(active.sum_cols(values), dense.sum(0))
    assert active.density == pytest.approx(dense.count_nonzero().item() / dense.numel())

    more = torch.randn_like(values)
    stacked = active.stacked(2)
    both = torch.cat((dense, active.dense(more)))
    assert torch.equal(stacked.csr(torch.cat((values, more))).to_dense(), both)
    assert torch.equal(stacked.transposed_csr(torch.cat((values, more))).to_dense(), both.T)


def test_coo_leaves_out_zeros() -> None:
    active = ActiveSet(torch.tensor([0, 0, 1]), torch.tensor([1, 3, 0]), torch.Size((2, 4)))
    coo = active.sparse_coo(torch.tensor([2.0, 0.0, -1.0]))
    assert coo._nnz() == 2
    assert coo.indices().tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norms", [False, True])
def test_decoder_gradients(dtype: torch.dtype, with_norms: bool) -> None:
    active, values = random_entries(6, 20, 0.3, dtype)
    values = torch.stack((values, torch.randn_like(values))).requires_grad_()
    W = torch.randn(20, 5, dtype=dtype)
    W[3] = 0  # the gradient of its norm is zero by convention
    W.requires_grad_()
    weights = torch.randn(2, 6, 5, dtype=dtype)
    per_norm = torch.randn(20, dtype=dtype)

    decoded = sparse_decode_with_norms(values, W, active, Workspace(), with_norms)
    total = (decoded.recons * weights).sum()
    wanted_total = sum(
        (sparse_decode.reference(v, active, W) * w).sum()
        for v, w in zip(values, weights, strict=True)
    )
    if with_norms:
        total = total + (decoded.norms * per_norm).sum()
        wanted_total = wanted_total + (W.norm(dim=-1) * per_norm).sum()
    else:
        assert decoded.norms is None
    torch.testing.assert_close(total, wanted_total)
    got = torch.autograd.grad(total, (values, W))
    for one, other in zip(got, torch.autograd.grad(wanted_total, (values, W)), strict=True):
        torch.testing.assert_close(one, other)


def test_workspace_hands_gradients_out_once() -> None:
    workspace, parameter = Workspace(), torch.zeros(4, 3)
    first = workspace.take_gradient(parameter)
    workspace.give_back(first)
    workspace.give_back(first)  # giving back twice must not make two of it
    second, third = workspace.take_gradient(parameter), workspace.take_gradient(parameter)
    assert second.data_ptr() == first.data_ptr()
    assert third.data_ptr() != first.data_ptr()
    assert workspace.take_gradient(parameter.T).stride() == parameter.T.stride()


def test_copies_of_a_workspace_are_empty() -> None:
    workspace = Workspace()
    workspace.give_back(torch.zeros(100))
    for again in (copy.deepcopy(workspace), pickle.loads(pickle.dumps(workspace))):
        assert not again._spares
