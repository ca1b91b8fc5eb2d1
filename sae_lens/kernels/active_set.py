"""`ActiveSet`: which entries of a [batch, d_sae] matrix are not zero, and both orders of them.

Row order serves what is computed per token, column order what is computed per feature.
"""

from __future__ import annotations

import warnings
from functools import cache, cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens.kernels.precision import sum_dtype
from sae_lens.kernels.sorting import stable_order


class ActiveSet:
    """Positions in a matrix, sorted by row; values are kept beside it, in this order.

    Args:
        rows: row of each entry, ascending, [nnz].
        cols: column of each entry, [nnz]; in any order within a row, but no position twice.
        shape: rows and columns of the matrix.
        count: how many entries there should be, where only the device knows (scalar tensor). If
            fewer, the rest are positions at which everything is zero; if more, some are missing.
    """

    def __init__(
        self,
        rows: Int[Tensor, " nnz"],
        cols: Int[Tensor, " nnz"],
        shape: torch.Size,
        count: Int[Tensor, ""] | None = None,
    ):
        self.rows = rows
        self.cols = cols
        self.shape = shape
        self.count = count

    def __len__(self) -> int:
        return self.rows.numel()

    @property
    def density(self) -> float | Float[Tensor, ""]:
        """Share of the matrix's positions that are entries."""
        n = len(self) if self.count is None else self.count
        return n / max(self.shape.numel(), 1)

    @property
    def is_incomplete(self) -> Bool[Tensor, ""] | None:
        """Whether there was no room for all entries; None where there always is."""
        return None if self.count is None else self.count > len(self)

    @cached_property
    def row_offsets(self) -> Int[Tensor, " n_rows_plus_one"]:
        """Where each row's entries begin, and at last where they end."""
        return _offsets(self.rows, self.shape[0])

    @cached_property
    def col_offsets(self) -> Int[Tensor, " n_cols_plus_one"]:
        """Where each column's entries begin when ordered by column."""
        return _offsets(self.cols.index_select(0, self.column_order), self.shape[1])

    @cached_property
    def column_order(self) -> Int[Tensor, " nnz"]:
        """The permutation that orders entries by column, and by row within one."""
        return stable_order(self.cols, self.shape[1])

    @cached_property
    def rows_by_column(self) -> Int[Tensor, " nnz"]:
        """The row of each entry, ordered by column."""
        return self.rows.index_select(0, self.column_order)

    def stacked(self, n_copies: int) -> ActiveSet:
        """The set of `n_copies` such matrices on top of each other."""
        return self if n_copies == 1 else _StackedActiveSet(self, n_copies)

    def interleaved(self, n_copies: int) -> tuple[Int[Tensor, " n_copies_nnz"], ActiveSet]:
        """The set of a matrix with each row `n_copies` times in turn, and its order of `stacked`'s.

        `values.flatten()[order]` are then values [n_copies, nnz] as entries of this set.
        """
        copies = torch.arange(n_copies, device=self.rows.device).unsqueeze(1)
        rows = (self.rows * n_copies + copies).flatten()
        shape = torch.Size((n_copies * self.shape[0], self.shape[1]))
        order = stable_order(rows, shape[0])
        cols = self.cols.repeat(n_copies).index_select(0, order)
        return order, ActiveSet(rows.index_select(0, order), cols, shape)

    def dense(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, "n_rows n_cols"]:
        """The matrix that has `values` at these positions."""
        return values.new_zeros(self.shape).index_put((self.rows, self.cols), values)

    def sparse_coo(self, values: Float[Tensor, " nnz"]) -> Tensor:
        """The same as a torch COO tensor, without entries that are zero."""
        rows, cols = self.rows, self.cols
        if values.device.type == "cpu":  # elsewhere, asking how many there are would stall
            nonzero = (values != 0).detach()
            if not bool(nonzero.all()):
                rows, cols, values = rows[nonzero], cols[nonzero], values[nonzero]
        return torch.sparse_coo_tensor(
            torch.stack((rows, cols)),
            values,
            self.shape,
            is_coalesced=True,
            check_invariants=False,
        )

    def csr(self, values: Float[Tensor, " nnz"]) -> Tensor:
        """The matrix in compressed rows."""
        return csr_tensor(self.row_offsets, self.cols, values, self.shape)

    def transposed_csr(self, values: Float[Tensor, " nnz"]) -> Tensor:
        """The transposed matrix in compressed rows; `values` in this set's order."""
        return csr_tensor(
            self.col_offsets,
            self.rows_by_column,
            values.index_select(0, self.column_order),
            self.shape[::-1],
        )

    def sum_rows(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, " n_rows"]:
        """Sum of each row's values, in float32 at least (differentiable)."""
        values = values.to(sum_dtype(values))
        return values.new_zeros(self.shape[0]).index_add(0, self.rows, values)

    def sum_cols(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, " n_cols"]:
        """Sum of each column's values, in float32 at least (differentiable)."""
        values = values.to(sum_dtype(values))
        return values.new_zeros(self.shape[1]).index_add(0, self.cols, values)


class _StackedActiveSet(ActiveSet):
    """Copies of one set below each other. The column order follows from the copy's, unsorted."""

    def __init__(self, base: ActiveSet, n_copies: int):
        self.base, self.n_copies = base, n_copies
        n_rows, n_cols = base.shape
        shifts = torch.arange(n_copies, device=base.rows.device).unsqueeze(1)
        super().__init__(
            (base.rows + shifts * n_rows).flatten(),
            base.cols.repeat(n_copies),
            torch.Size((n_copies * n_rows, n_cols)),
        )

    @cached_property
    def row_offsets(self) -> Tensor:
        first, rest = self.base.row_offsets[:1], self.base.row_offsets[1:]
        shifts = torch.arange(self.n_copies, device=rest.device).unsqueeze(1) * len(self.base)
        return torch.cat((first, (rest + shifts).flatten()))

    @cached_property
    def col_offsets(self) -> Tensor:
        return self.base.col_offsets * self.n_copies

    @cached_property
    def column_order(self) -> Tensor:
        shifts = torch.arange(self.n_copies, device=self.rows.device) * len(self.base)
        return (self.base.column_order.unsqueeze(1) + shifts).flatten()


def _offsets(ascending: Tensor, n: int) -> Tensor:
    # unlike counting, searching does not make the host wait for the device
    return torch.searchsorted(ascending, torch.arange(n + 1, device=ascending.device))


def csr_tensor(offsets: Tensor, indices: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """A torch CSR tensor of parts that are known to be consistent."""
    _hear_the_notice_about_csr()
    return torch.sparse_csr_tensor(offsets, indices, values, shape, check_invariants=False)


@cache
def _hear_the_notice_about_csr() -> None:
    # torch says once per process that CSR tensors are in beta; users cannot act on that
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(torch.tensor([0, 1]), index, torch.zeros(1), (1, 1))
