"""Entries above a threshold, in a number that the host knows before the device has counted them.

Room that the entries do not take is filled with other positions of the matrix, spread evenly over
it. Those are at or below the threshold, where features are zero and nothing has a gradient, so they
add zeros to whatever is summed: everything that works on an `ActiveSet` works on a filled one.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens.kernels import encoder_product
from sae_lens.kernels.active_entries import ActiveEntries, active_entries
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.entry_capacity import EntryCapacity
from sae_lens.kernels.workspace import Workspace


def find_entries(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"] | None,
    lower: Float[Tensor, " d_sae"],
    workspace: Workspace,
    capacity: EntryCapacity | None,
) -> ActiveEntries:
    """Entries above `lower`: exactly those, or, with a capacity, filled up without waiting."""
    if capacity is None:
        return active_entries(x, W, bias, lower, workspace)
    return filled_entries(x, W, bias, lower, workspace, capacity)


def filled_entries(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"] | None,
    lower: Float[Tensor, " d_sae"],
    workspace: Workspace,
    capacity: EntryCapacity,
) -> ActiveEntries:
    """As `active_entries`, filled up to a capacity. What finds no room is missing at the end."""
    product = encoder_product.encoder_product(x, W, None, workspace)
    mask = ~(product <= (lower if bias is None else lower - bias))
    found = running_count(mask)
    count = found[-1].to(torch.int64)
    flat = filled_positions(found, count, capacity.room_for(count, mask.numel()))
    rows = flat // W.shape[1]
    cols = flat - rows * W.shape[1]
    hidden = product.view(-1).index_select(0, flat).to(x.dtype)
    if bias is not None:
        hidden = hidden + bias.index_select(0, cols)
    return ActiveEntries(ActiveSet(rows, cols, mask.shape, count), hidden)


def running_count(mask: Bool[Tensor, "batch d_sae"]) -> Int[Tensor, " n_positions"]:
    """How many entries there are up to each position of the flattened mask, and in it."""
    dtype = torch.int32 if mask.numel() < 1 << 31 else torch.int64
    return mask.view(-1).cumsum(0, dtype=dtype)


def filled_positions(
    found: Int[Tensor, " n_positions"], count: Int[Tensor, ""], capacity: int
) -> Int[Tensor, " capacity"]:
    """Flat positions in ascending order: of all entries, then as many others as there is room for.

    Args:
        found: `running_count` of a mask.
        count: its last element.
        capacity: how many positions to give; of more entries than that, the first ones.
    """
    place = torch.arange(capacity, device=found.device)
    flat = torch.searchsorted(found, place.to(found.dtype) + 1)
    is_entry = place < count
    # of the positions between entries, those with evenly spread numbers
    n_others, room_left = len(found) - count, (capacity - count).clamp(min=1)
    number = (place - count) * n_others // room_left
    others_before = torch.where(is_entry, flat - place, len(found))
    others = number + torch.searchsorted(others_before, number, right=True)
    return torch.where(is_entry, flat, others).sort().values
