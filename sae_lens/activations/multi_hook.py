"""Activations of several hooks, from one forward pass per batch of prompts, mixed alike.

A row of the buffer holds the activations of all hooks at one token, side by side. So buffer, order,
epochs, filters and state are those of one `ActivationsStore` with wide rows, and every hook is
served exactly as a store of its own with the same seed would serve it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

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
from sae_lens.activations.store import ActivationsStore
from sae_lens.atomic_files import atomic_save_safetensors
from sae_lens.hook_names import layer_of

# The parts of a store's state that hold rows.
_ROWS = ("storage_buffer", "scheduled_rows", "prefetched")


class HookSite(NamedTuple):
    """A hook, or one head of it, and the width of its activations."""

    hook_name: str
    hook_head_index: int | None
    d_in: int


class MultiHookStore(ActivationsStore):
    """Serves rows with the activations of several sites side by side.

    Args:
        model: as for `ActivationsStore`.
        sites: the sites; one that is named twice is read once.
        settings: those of `ActivationsStore`, apart from the ones about the hook.

    Raises:
        ValueError: for cached activations, which are of one hook.

    Attributes:
        columns: which part of a row belongs to a site.
    """

    def __init__(self, model: Any, sites: Sequence[HookSite], **settings: Any):
        if settings.get("cached_activations_path") is not None:
            raise ValueError(
                "Several hooks cannot be read from cached activations, which are of one hook."
            )
        self.sites = tuple(dict.fromkeys(sites))
        self.hook_names = tuple(dict.fromkeys(site.hook_name for site in self.sites))
        self.columns: dict[HookSite, slice] = {}
        width = 0
        for site in self.sites:
            self.columns[site] = slice(width, width + site.d_in)
            width += site.d_in
        self._settings = settings
        self._factors: dict[HookSite, float] = {}
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
        if self._factors:
            factors = [self._factors[site] for site in self.sites]
            state["sharing.factors"] = torch.tensor(factors, dtype=torch.float64)
        atomic_save_safetensors(state, file_path)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state. Raises `ValueError` when it does not fit the store."""
        super().load_state_dict(state)
        self.n_batches_drawn = int(state.get("sharing.n_batches_drawn", 0))
        current = state.get("sharing.current")
        self._current = None if current is None else current.to(self.device)
        factors = state.get("sharing.factors")
        self._factors = (
            {} if factors is None else dict(zip(self.sites, factors.tolist(), strict=True))
        )

    def norm_scaling_factor_of(self, site: HookSite) -> float:
        """sqrt(d_in) / mean norm at a site, estimated for all sites together, once."""
        if not self._factors:
            norms: dict[HookSite, list[float]] = {site: [] for site in self.sites}
            with self._looking_ahead():
                for _ in range(self.n_batches_for_norm_estimate):
                    batch = self.next_batch()
                    for one, columns in self.columns.items():
                        acts = batch[..., columns].float().contiguous()
                        norms[one].append(acts.norm(dim=-1).mean().item())
                    if self._epoch_is_served():
                        break
            self._factors = {
                one: scaling.factor_of_norms(norms[one], one.d_in) for one in self.sites
            }
        return self._factors[site]

    def single_store(
        self, site: HookSite, normalize_activations: str, dataset: Any = None
    ) -> ActivationsStore:
        """An ordinary store of one site on the same model, at the start of its data.

        Args:
            site: one of the sites.
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
            "hook_name": site.hook_name,
            "hook_layer": layer_of(site.hook_name),
            "hook_head_index": site.hook_head_index,
            "d_in": site.d_in,
            "normalize_activations": normalize_activations,
            "total_training_tokens": 0,
            "prefetch_batches": 0,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say of the data was said before
            return ActivationsStore(self.model, **settings)

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
        parts = [with_flat_heads(found[site.hook_name], *site) for site in self.sites]
        return torch.cat(parts, dim=-1)


class HookView:
    """One site of a `MultiHookStore`, as the trainer of one SAE sees a store.

    Args:
        shared: the store.
        site: one of its sites.
        normalize_activations: "expected_average_only_in" scales by the site's factor here; all
            else is up to the SAE.
    """

    def __init__(self, shared: MultiHookStore, site: HookSite, normalize_activations: str):
        self.shared = shared
        self.site = site
        self.normalize_activations = normalize_activations
        self.estimated_norm_scaling_factor: float | None = None
        self.n_batches_taken = 0

    @property
    def exclude_special_tokens(self) -> Tensor | None:
        """Ids whose activations are left out."""
        return self.shared.exclude_special_tokens

    @property
    def storage_buffer(self) -> Float[Tensor, "row 1 d_in"]:
        """Rows that wait for the next mixing, scaled where the view scales."""
        return self._own(self.shared.storage_buffer)

    def next_batch(self) -> Float[Tensor, "batch 1 d_in"]:
        """The next batch at the site, scaled where the view scales."""
        rows = self.shared.batch(self.n_batches_taken)
        self.n_batches_taken += 1
        return self._own(rows)

    def look_ahead(self, n_batches: int) -> Generator[Float[Tensor, "batch 1 d_in"], None, None]:
        """The next batches at the site, unscaled; see `ActivationsStore.look_ahead`."""
        with closing(self.shared.look_ahead(n_batches)) as batches:
            for rows in batches:
                yield rows[..., self.shared.columns[self.site]].contiguous()

    def set_norm_scaling_factor_if_needed(self) -> None:
        """Estimate the factor where the view scales and does not know it yet."""
        scales = self.normalize_activations == scaling.EXPECTED_AVERAGE
        if scales and self.estimated_norm_scaling_factor is None:
            self.estimated_norm_scaling_factor = self.shared.norm_scaling_factor_of(self.site)

    def evaluation_stream(self, dataset: Any = None) -> ActivationsStore:
        """A store of the site alone that begins at the start of its data and shares no position."""
        stream = self.shared.single_store(self.site, self.normalize_activations, dataset)
        stream.estimated_norm_scaling_factor = self.estimated_norm_scaling_factor
        return stream

    def pause_prefetching(self) -> None:
        """Bring the thread of the shared store to rest, if it has one."""
        self.shared.pause_prefetching()

    def state_dict(self) -> dict[str, Tensor]:
        """The state of a store of this site alone that stands where this view stands."""
        self.pause_prefetching()
        state = store_state.capture(self.shared)
        state = {
            name: self._own(value) if name in _ROWS else value.clone()
            for name, value in state.items()
        }
        factor = self.estimated_norm_scaling_factor
        if factor is not None:
            state["estimated_norm_scaling_factor"] = torch.tensor(factor, dtype=torch.float64)
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
        own = rows[..., self.shared.columns[self.site]].contiguous()
        factor = self.estimated_norm_scaling_factor
        return own if factor is None else own * factor
