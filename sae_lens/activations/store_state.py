"""What changes in an `ActivationsStore`, as tensors, and back.

Names that other versions of the library know: `n_dataset_processed`, `storage_buffer` (the rows
that wait for the next mixing) and `estimated_norm_scaling_factor`. Beside them, as soon as there is
something to say: `scheduled_rows` (the rest of the current pass, in order), `mixing.*` (epoch,
counters, generator), `tokens.*` (where the data stand), `current_row_idx` of a cache,
`prefetched` (batches made ahead, which come first) and `largest_batch` (when the model ran out of
memory on larger ones). With these a store made in the same way goes on exactly where the saved one
stood, whether or not it makes batches ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sae_lens.activations.store import ActivationsStore

State = dict[str, Tensor]

# Newer versions of the original call the rows so.
_OTHER_BUFFER_NAME = "storage_buffer_activations"


def capture(store: ActivationsStore) -> State:
    """The state of a store. Rows are views of its buffer: copy them before it goes on."""
    state: State = {"n_dataset_processed": torch.tensor(store.n_dataset_processed)}
    if store.estimated_norm_scaling_factor is not None:
        factor = torch.as_tensor(store.estimated_norm_scaling_factor, dtype=torch.float64)
        state["estimated_norm_scaling_factor"] = factor.cpu()
    state.update(_prefixed("tokens.", store._token_state()))
    if store.cached_activation_dataset is not None:
        state["current_row_idx"] = torch.tensor(store.current_row_idx)
    if store.halving is not None and store.halving.largest is not None:
        state["largest_batch"] = torch.tensor(store.halving.largest)
    if store._ahead.waiting:
        state["prefetched"] = torch.stack(store._ahead.waiting)
    mixer = store._mixer
    if mixer is not None and (mixer.filled or mixer.epoch > 0):
        rows = mixer.buffer.arranged().unsqueeze(1)
        state["storage_buffer"] = rows[mixer.n_scheduled :]
        if mixer.n_scheduled > 0:
            state["scheduled_rows"] = rows[: mixer.n_scheduled]
        state.update(_prefixed("mixing.", mixer.state_dict()))
    return state


def restore(store: ActivationsStore, state: State) -> None:
    """Bring a store to a captured state, or to what a state of another version tells.

    Raises:
        ValueError: when the rows in the state do not fit the store.
    """
    n_processed = int(state.get("n_dataset_processed", 0))
    factor = state.get("estimated_norm_scaling_factor")
    store.estimated_norm_scaling_factor = None if factor is None else as_factor(factor)
    store._load_token_state(_without_prefix("tokens.", state), n_processed)
    store.current_row_idx = int(state.get("current_row_idx", 0))
    if store.halving is not None and "largest_batch" in state:
        # In parts of another size the model's results differ in their last digits.
        store.halving.largest = int(state["largest_batch"])
    store._dataloader = None
    store._ahead.waiting = _batches(state.get("prefetched"), store)
    stored = state.get("storage_buffer", state.get(_OTHER_BUFFER_NAME))
    store._mixer = None
    if stored is None:
        return
    mixer = store._get_mixer()
    for rows in (state.get("scheduled_rows"), stored):
        if rows is not None:
            _require_rows_fit(rows, store.d_in, mixer.buffer.n_free)
            mixer.buffer.add(rows.reshape(-1, store.d_in))
            mixer.filled = True
    counters = _without_prefix("mixing.", state)
    if counters:
        mixer.load_state_dict(counters)
        store._resume_pass()


def as_factor(saved: Tensor) -> Any:
    """One factor as a number; several, one for each column of a row, as they are."""
    return saved.float() if saved.ndim else float(saved)


def capture_position(store: ActivationsStore) -> State | None:
    """Where the data stand, if a store with an empty buffer could be brought back there."""
    held = 0 if store._mixer is None else len(store._mixer.buffer)
    holds_rows = held > 0 or len(store._ahead.waiting) > 0
    one_pass_only = iter(store.dataset) is store.dataset
    if holds_rows or one_pass_only:
        return None
    state = {name: value.clone() for name, value in capture(store).items()}
    if "storage_buffer" not in state and store._mixer is not None:
        state.update(_prefixed("mixing.", store._mixer.state_dict()))
    return state


def restore_position(store: ActivationsStore, position: State) -> None:
    """Counterpart of `capture_position`; the scaling factor stays as it is."""
    store._load_token_state(
        _without_prefix("tokens.", position), int(position["n_dataset_processed"])
    )
    store.current_row_idx = int(position.get("current_row_idx", 0))
    counters = _without_prefix("mixing.", position)
    if counters and store._mixer is not None:
        store._mixer.load_state_dict(counters)
    else:
        store._mixer = None


def _batches(saved: Tensor | None, store: ActivationsStore) -> list[Tensor]:
    if saved is None:
        return []
    _require_rows_fit(saved, store.d_in, saved.numel())
    return list(saved.to(device=store.device, dtype=store.dtype))


def _require_rows_fit(rows: Tensor, d_in: int, n_free: int) -> None:
    if rows.numel() > 0 and (rows.shape[-1] != d_in or rows.numel() // d_in > n_free):
        raise ValueError(
            f"The saved buffer has the shape {tuple(rows.shape)}, but this store has d_in={d_in} "
            f"and room for {n_free} rows. Load it into a store with the settings it was saved with."
        )


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def _without_prefix(prefix: str, state: State) -> State:
    return {name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)}
