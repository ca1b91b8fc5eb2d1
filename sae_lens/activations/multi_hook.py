"""Activations of several hooks, from one forward pass per batch of prompts, mixed alike.

A row of the buffer holds the activations of all hooks at one token, side by side. So buffer, order,
epochs, filters and state are those of one `ActivationsStore` with wide rows, and every SAE is
served exactly as a store of its own with the same seed would serve it: one hook, the input and
output of a transcoder, or all hooks of a crosscoder or a cross-layer transcoder.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.activations import scaling, store_state
from sae_lens.activations.activation_source import with_flat_heads
from sae_lens.activations.model_adapters import (
    activations_at_hooks,
    model_device,
    require_hook,
)
from sae_lens.activations.reading import HookSite, Reading
from sae_lens.activations.rows import require_inputs_first, require_one_for_each_token
from sae_lens.activations.store import ActivationsStore
from sae_lens.atomic_files import atomic_save_safetensors
from sae_lens.hook_names import layer_of

# The parts of a store's state that hold rows.
_ROWS = ("storage_buffer", "scheduled_rows", "prefetched")


class MultiHookStore(ActivationsStore):
    """Serves rows with the activations of several sites side by side.

    Args:
        model: as for `ActivationsStore`.
        readings: what the SAEs ask for; a site that is named twice is read once.
        settings: those of `ActivationsStore`, apart from the ones about the hook.

    Raises:
        ValueError: for cached activations, which are of one hook.

    Attributes:
        columns: which part of a row belongs to a site.
    """

    def __init__(self, model: Any, readings: Sequence[Reading], **settings: Any):
        if settings.get("cached_activations_path") is not None:
            raise ValueError(
                "Several hooks cannot be read from cached activations, which are of one hook."
            )
        self.readings = tuple(dict.fromkeys(readings))
        sites = [site for reading in self.readings for site in reading.sites]
        self.sites = tuple(dict.fromkeys(sites))
        self.hook_names = tuple(dict.fromkeys(site.hook_name for site in self.sites))
        self.columns: dict[HookSite, slice] = {}
        width = 0
        for site in self.sites:
            self.columns[site] = slice(width, width + site.d_in)
            width += site.d_in
        self._settings = settings
        self._factors: dict[Reading, Any] = {}
        self._current: Tensor | None = None
        self.n_batches_drawn = 0
        super().__init__(
            model,
            **{
                **settings,
                "hook_name": self.hook_names[0],
                "hook_layer": max(layer_of(name) for name in self.hook_names),
                "hook_head_index": None,
                "d_in": width,
                "normalize_activations": "none",
            },
        )

    def batch(self, number: int) -> Float[Tensor, "batch 1 d_in"]:
        """The batch of that number, counted from 0: the last one that was drawn, or the next.

        Raises:
            ValueError: for an earlier or later one, which would have to be kept or skipped.
        """
        if number == self.n_batches_drawn:
            self._current = self.next_batch()
            self.n_batches_drawn += 1
        elif number != self.n_batches_drawn - 1 or self._current is None:
            raise ValueError(
                f"Batch {number} is asked for after batch {self.n_batches_drawn - 1}. SAEs that "
                "share their activations must be trained side by side, step by step."
            )
        return self._current

    def save(self, file_path: str | Path) -> None:
        """Write the state, with what the sites share, to a safetensors file."""
        self.pause_prefetching()
        state = store_state.capture(self)
        state["sharing.n_batches_drawn"] = torch.tensor(self.n_batches_drawn)
        if self._current is not None:
            state["sharing.current"] = self._current.clone()
        for number, factor in enumerate(self._factors.values()):
            state[f"sharing.factors.{number}"] = torch.as_tensor(factor, dtype=torch.float64)
        atomic_save_safetensors(state, file_path)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state. Raises `ValueError` when it does not fit the store."""
        super().load_state_dict(state)
        self.n_batches_drawn = int(state.get("sharing.n_batches_drawn", 0))
        current = state.get("sharing.current")
        self._current = None if current is None else current.to(self.device)
        names = [f"sharing.factors.{number}" for number in range(len(self.readings))]
        self._factors = {
            reading: store_state.as_factor(state[name])
            for reading, name in zip(self.readings, names, strict=True)
            if name in state
        }

    def norm_scaling_factor_of(self, reading: Reading) -> Any:
        """sqrt(d_in) / mean norm of what an SAE asks for, estimated for all together, once."""
        if not self._factors:
            estimates = {one: one.factor_estimate() for one in self.readings}
            with closing(self.look_ahead(self.n_batches_for_norm_estimate)) as batches:
                for batch in batches:
                    for one, estimate in estimates.items():
                        estimate.add(self.rows_of(one, batch))
            self._factors = {one: estimates[one].factor() for one in self.readings}
        return self._factors[reading]

    def rows_of(
        self, reading: Reading, rows: Float[Tensor, "*shape width"]
    ) -> Float[Tensor, "*shape d_in"]:
        """The part of rows that an SAE asks for."""
        parts = [rows[..., self.columns[site]] for site in reading.sites]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=-1)

    def single_store(
        self, reading: Reading, normalize_activations: str, dataset: Any = None
    ) -> ActivationsStore:
        """A store for one SAE on the same model, at the start of its data.

        Args:
            reading: one of the readings.
            normalize_activations: as for `ActivationsStore`.
            dataset: other data; by default the same.
        """
        self.pause_prefetching()
        if dataset is None:
            # A streaming dataset keeps its position in itself, so each needs one of its own.
            keeps_position = hasattr(self.dataset, "load_state_dict")
            dataset = copy.deepcopy(self.dataset) if keeps_position else self.dataset
        settings = {
            **self._settings,
            "dataset": dataset,
            "normalize_activations": normalize_activations,
            "total_training_tokens": 0,
            "prefetch_batches": 0,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say of the data was said before
            return reading.single_store(self.model, **settings)

    @torch.no_grad()
    def check_model(self) -> None:
        """As for a store of one hook, and the order and lengths of hooks of the same SAE.

        Raises:
            ValueError: when a hook does not exist or has another length, or what is predicted runs
                before what is read.
            RuntimeError: when the width at a hook is another.
        """
        super().check_model()
        several = [reading for reading in self.readings if len(reading.sites) > 1]
        if not several:
            return
        # of full length, or a hook with another axis in the place of positions might look right
        shape = (1, self.context_size)
        tokens = torch.zeros(shape, dtype=torch.long, device=model_device(self.model))
        self._run_model(tokens)
        for reading in several:
            if reading.outputs:
                names = [site.hook_name for site in reading.sites]
                inputs, outputs = names[: reading.n_read], names[reading.n_read :]
                require_inputs_first(self.model, tokens, inputs, outputs, self.model_kwargs)

    def _require_model_fits(self) -> None:
        super()._require_model_fits()
        for name in self.hook_names:
            require_hook(self.model, name)

    def _run_model(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context *w"]:
        device_type = model_device(self.model).type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.autocast_lm):
            found = activations_at_hooks(
                self.model,
                tokens,
                self.hook_names,
                self.hook_layer + 1,
                self.model_kwargs,
                fused=self.fused_forward,
            )
        if any(len(reading.sites) > 1 for reading in self.readings):
            require_one_for_each_token(tokens, found)
        read = {site for reading in self.readings for site in reading.sites[: reading.n_read]}
        parts = [
            with_flat_heads(found[site.hook_name], *site, "d_in" if site in read else "d_out")
            for site in self.sites
        ]
        return torch.cat(parts, dim=-1)


class HookView:
    """What one SAE asks a `MultiHookStore` for, as its trainer sees a store.

    Args:
        shared: the store.
        reading: one of its readings.
        normalize_activations: "expected_average_only_in" scales by the reading's factor here; all
            else is up to the SAE.
    """

    def __init__(self, shared: MultiHookStore, reading: Reading, normalize_activations: str):
        self.shared = shared
        self.reading = reading
        self.normalize_activations = normalize_activations
        self.estimated_norm_scaling_factor: Any = None
        self.n_batches_taken = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Of every activation in a row."""
        return self.reading.widths

    @property
    def n_read(self) -> int:
        """How many of them are the SAE's input."""
        return self.reading.n_read

    @property
    def exclude_special_tokens(self) -> Tensor | None:
        """Ids whose activations are left out."""
        return self.shared.exclude_special_tokens

    @property
    def storage_buffer(self) -> Float[Tensor, "row 1 d_in"]:
        """Rows that wait for the next mixing, scaled where the view scales."""
        return self._own(self.shared.storage_buffer)

    def next_batch(self) -> Float[Tensor, "batch 1 d_in"]:
        """The next batch, scaled where the view scales."""
        rows = self.shared.batch(self.n_batches_taken)
        self.n_batches_taken += 1
        return self._own(rows)

    def look_ahead(self, n_batches: int) -> Generator[Float[Tensor, "batch 1 d_in"], None, None]:
        """The next batches, unscaled; see `ActivationsStore.look_ahead`."""
        with closing(self.shared.look_ahead(n_batches)) as batches:
            for rows in batches:
                yield self.own_rows(rows)

    def own_rows(self, rows: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape d_in"]:
        """This SAE's part of shared rows, unscaled."""
        return self.shared.rows_of(self.reading, rows)

    def set_norm_scaling_factor_if_needed(self) -> None:
        """Estimate the factor where the view scales and does not know it yet."""
        scales = self.normalize_activations == scaling.EXPECTED_AVERAGE
        if scales and self.estimated_norm_scaling_factor is None:
            self.estimated_norm_scaling_factor = self.shared.norm_scaling_factor_of(self.reading)

    def evaluation_stream(self, dataset: Any = None) -> ActivationsStore:
        """A store for this SAE alone, at the start of its data; it shares no position."""
        stream = self.shared.single_store(self.reading, self.normalize_activations, dataset)
        stream.estimated_norm_scaling_factor = self.estimated_norm_scaling_factor
        return stream

    def pause_prefetching(self) -> None:
        """Bring the thread of the shared store to rest, if it has one."""
        self.shared.pause_prefetching()

    def state_dict(self) -> dict[str, Tensor]:
        """The state of a store for this SAE alone that stands where this view stands."""
        self.pause_prefetching()
        state = store_state.capture(self.shared)
        state = {
            name: self._own(value) if name in _ROWS else value.clone()
            for name, value in state.items()
        }
        factor = self.estimated_norm_scaling_factor
        if factor is not None:
            state["estimated_norm_scaling_factor"] = torch.as_tensor(factor, dtype=torch.float64)
        if self.n_batches_taken < self.shared.n_batches_drawn:
            # Others have taken their part of a batch that is still to come here.
            current = self._own(self.shared.batch(self.n_batches_taken)).unsqueeze(0)
            ahead = state.get("prefetched", current[:0])
            state["prefetched"] = torch.cat([current, ahead])
        return state

    def save(self, file_path: str | Path) -> None:
        """Write `state_dict` to a safetensors file; `ActivationsStore.load` reads it."""
        atomic_save_safetensors(self.state_dict(), file_path)

    def _own(self, rows: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape d_in"]:
        own = self.own_rows(rows)
        factor = self.estimated_norm_scaling_factor
        return own if factor is None else scaling.scaled(own, factor)
