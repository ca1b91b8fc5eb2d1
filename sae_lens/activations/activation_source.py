"""Token rows through the model, or out of a cache: activations of one hook, not yet mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.activations import cache, scaling
from sae_lens.activations.buffer import ShufflingBuffer
from sae_lens.activations.halving import HalvingRunner
from sae_lens.activations.model_adapters import (
    activations_at,
    longest_context,
    model_device,
    require_hook,
)
from sae_lens.activations.rows import filter_excluded
from sae_lens.activations.store_settings import sliced_length
from sae_lens.activations.token_source import TokenSource
from sae_lens.breaking_off import may_be_broken_off

if TYPE_CHECKING:
    from datasets import Dataset


class ActivationsWithTokens(NamedTuple):
    """Activations and the token that each row belongs to."""

    activations: Float[Tensor, "row 1 d_in"]
    token_ids: Int[Tensor, " row"]


class EpochEnd(StopIteration):
    """The data are through. `partial` holds what the same call had read before that, or None."""

    def __init__(self, partial: Float[Tensor, "row 1 d_in"] | None = None):
        super().__init__()
        self.partial = partial


class ActivationSource(TokenSource):
    """Activations of one hook for the rows of a `TokenSource`, or those of a cache.

    The attributes named here are set by `ActivationsStore`, where they are explained.
    """

    hook_name: str
    hook_layer: int
    hook_head_index: int | None
    d_in: int
    dtype: torch.dtype
    normalize_activations: str
    cached_activations_path: str | None
    model_kwargs: dict[str, Any]
    autocast_lm: bool
    seqpos_slice: tuple[int | None, ...]
    exclude_special_tokens: Tensor | None
    cached_activation_dataset: Dataset | None
    seed: int | None
    estimated_norm_scaling_factor: Any = None  # a number, or one for each column of a row
    current_row_idx: int = 0
    # Set where the model's batches may be run in parts when memory is short.
    halving: HalvingRunner | None = None
    # Whether blocks of a HookedTransformer may run as fewer, larger operations (`fused_forward`).
    fused_forward: bool = True
    _model_checked: bool = False

    @torch.no_grad()
    def check_model(self) -> None:
        """Run one token through the model to check hook and width, without using up any data.

        Raises:
            ValueError: when the model has no such hook, or takes no prompts of this length.
            RuntimeError: when the hook's width is not `d_in`.
        """
        self.pause_prefetching()
        self._require_model_fits()
        token = torch.zeros(1, 1, dtype=torch.long, device=model_device(self.model))
        self._flatten_heads(self._run_model(token))

    @torch.no_grad()
    def get_activations(
        self, batch_tokens: Int[Tensor, "batch context"]
    ) -> Float[Tensor, "batch pos 1 d_in"]:
        """Activations of the hook at the positions of `seqpos_slice`, in the model's dtype.

        Raises:
            ValueError: when the model has no such hook, or takes no prompts of this length.
            RuntimeError: when the hook's width is not `d_in`.
        """
        self.pause_prefetching()
        if not self._model_checked:
            self._require_model_fits()
            self._model_checked = True
        if self.halving is None:
            activations = self._run_model(batch_tokens)[:, self._positions]
        else:
            activations = self.halving(self._run_model, batch_tokens)[:, self._positions]
        return self._flatten_heads(activations).unsqueeze(2)

    @torch.no_grad()
    def get_filtered_llm_batch(self) -> Float[Tensor, "row d_in"]:
        """One batch of the language model without excluded tokens; not mixed and not scaled."""
        tokens = self.get_batch_tokens()
        activations = self.get_activations(tokens).flatten(0, 2)
        if self.exclude_special_tokens is not None:
            ids = tokens[:, self._positions].flatten()
            activations = filter_excluded((activations, ids), self.exclude_special_tokens)
        return activations.to(device=self.device, dtype=self.dtype)

    def get_buffer(
        self, n_batches_in_buffer: int, raise_on_epoch_end: bool = False, shuffle: bool = True
    ) -> Float[Tensor, "row 1 d_in"]:
        """Activations of that many batches of prompts, scaled where the store scales.

        Args:
            n_batches_in_buffer: batches of `store_batch_size_prompts` prompts.
            raise_on_epoch_end: stop when the data end, instead of going on from the start.
            shuffle: permute the rows; otherwise they come by prompt, then position.

        Raises:
            EpochEnd: a `StopIteration` with what was read of this buffer as `partial`.
            ValueError: when the scaling factor is needed and not set, or more is asked for than
                the whole cache holds.
        """
        return self._read_buffer(n_batches_in_buffer, raise_on_epoch_end, shuffle)[0]

    def get_buffer_with_tokens(
        self, n_batches_in_buffer: int, raise_on_epoch_end: bool = False, shuffle: bool = True
    ) -> ActivationsWithTokens:
        """As `get_buffer`, with the token that each row belongs to."""
        rows, ids = self._read_buffer(n_batches_in_buffer, raise_on_epoch_end, shuffle, True)
        return ActivationsWithTokens(rows, ids)

    def load_cached_activation_dataset(self) -> Dataset | None:
        """The cache at `cached_activations_path`, memory-mapped, or None without a path."""
        if self.cached_activations_path is None:
            return None
        self.current_row_idx = 0
        dataset = None
        for name, width in self._widths_of_hooks().items():
            dataset = cache.open_cached_activations(
                self.cached_activations_path,
                name,
                self.context_size,
                width,
                self.dtype,
                self.device,
            )
        return dataset

    def _widths_of_hooks(self) -> dict[str, int]:
        """Width of each hook whose activations are side by side in a row, in their order."""
        return {self.hook_name: self.d_in}

    def apply_norm_scaling_factor(self, activations: Tensor) -> Tensor:
        """Activations times the factor, of several the first. `ValueError` while there is none."""
        return scaling.scaled(activations, self._require_factor())

    def unscale(self, activations: Tensor) -> Tensor:
        """Activations over the factor, of several the last. `ValueError` while there is none."""
        return scaling.unscaled(activations, self._require_factor())

    def get_norm_scaling_factor(self, activations: Float[Tensor, "*batch d_in"]) -> Tensor:
        """sqrt(d_in) / mean norm of these activations; nothing is stored."""
        return scaling.norm_scaling_factor(activations)

    def _load_buffer_from_cached(
        self,
        total_size: int,
        context_size: int,
        num_layers: int,
        d_in: int,
        raise_on_epoch_end: bool,
    ) -> Float[Tensor, "row num_layers d_in"]:
        """The next `total_size` rows of the cache, flattened; not scaled.

        Raises:
            EpochEnd: when fewer remain and `raise_on_epoch_end`; those are its `partial`.
            ValueError: when the whole cache has fewer.
        """
        dataset = self._require_cache_holds(total_size)
        start, stop = self.current_row_idx, self.current_row_idx + total_size
        rows = self._cached_rows(dataset, start, min(stop, len(dataset)))
        self.current_row_idx = stop
        if stop > len(dataset):
            self.current_row_idx = 0
            if raise_on_epoch_end:
                rest = rows.reshape(-1, num_layers, d_in).to(device=self.device, dtype=self.dtype)
                raise EpochEnd(rest if len(rest) else None)
            self.current_row_idx = stop - len(dataset)
            more = self._cached_rows(dataset, 0, self.current_row_idx)
            rows = torch.cat([rows, more])
        rows = rows.reshape(total_size * context_size, num_layers, d_in)
        return rows.to(device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def _read_buffer(
        self, n_batches: int, raise_on_epoch_end: bool, shuffle: bool, with_tokens: bool = False
    ) -> tuple[Tensor, Tensor]:
        self.pause_prefetching()
        n_prompts = n_batches * self.store_batch_size_prompts
        if self.cached_activation_dataset is not None:
            self._require_cache_holds(n_prompts)
        buffer = ShufflingBuffer(
            n_prompts * self._rows_per_prompt, self.d_in, self.dtype, self.device
        )
        token_ids = []
        try:
            for _ in range(n_batches):
                token_ids.append(self._add_batch(buffer, raise_on_epoch_end, with_tokens))
        except StopIteration as end:
            rest = getattr(end, "partial", None)
            if rest is not None:
                buffer.add(rest, self._scale)
            raise EpochEnd(buffer.arranged().unsqueeze(1) if len(buffer) else None) from None
        ids = torch.cat(token_ids) if token_ids else torch.empty(0, dtype=torch.long)
        if shuffle:
            buffer.mix(self._generator)
            ids = ids[buffer.queue] if with_tokens else ids
        return buffer.arranged().unsqueeze(1), ids

    def _add_batch(
        self, buffer: ShufflingBuffer, raise_on_epoch_end: bool, with_tokens: bool
    ) -> Int[Tensor, " row"]:
        """Add the next batch of prompts; its token ids, or none when they are not asked for."""
        activations, tokens = self._read_batch(raise_on_epoch_end, with_tokens)
        buffer.add(activations, self._scale)
        if tokens is None:
            return torch.empty(0, dtype=torch.long)
        return tokens.flatten().cpu()

    def _read_batch(
        self, raise_on_epoch_end: bool, with_tokens: bool
    ) -> tuple[Float[Tensor, "batch pos d_in"], Int[Tensor, "batch pos"] | None]:
        """One batch of prompts, its tokens sliced as its activations are."""
        n = self.store_batch_size_prompts
        if self.cached_activation_dataset is None:
            tokens = self.get_batch_tokens(raise_at_epoch_end=raise_on_epoch_end)
            return self.get_activations(tokens).squeeze(2), tokens[:, self._positions]
        start, size = self.current_row_idx, len(self.cached_activation_dataset)
        rows = self._load_buffer_from_cached(
            n, self.context_size, 1, self.d_in, raise_on_epoch_end
        ).view(n, self.context_size, self.d_in)
        if not with_tokens:
            return rows, None
        read = cache.read_cached_token_ids
        ids = read(self.cached_activation_dataset, start, min(start + n, size))
        if start + n > size:
            ids = torch.cat([ids, read(self.cached_activation_dataset, 0, start + n - size)])
        return rows, ids

    @torch.no_grad()
    def _feed(self, buffer: ShufflingBuffer) -> bool:
        """Add the next batch of prompts, or the last of the epoch; False when there are no more."""
        if self.cached_activation_dataset is not None:
            return self._feed_from_cache(self.cached_activation_dataset, buffer)
        more = True
        try:
            tokens = self.get_batch_tokens(raise_at_epoch_end=True)
        except StopIteration:
            more = False
            if not self._held_rows:
                return False
            tokens = self._take_held_rows(len(self._held_rows))
        held = len(buffer)
        try:
            with may_be_broken_off():
                activations = self.get_activations(tokens).squeeze(2)
            self._add_kept(buffer, activations, tokens[:, self._positions])
        except BaseException:
            buffer.take_back(held)
            self._give_back_rows(tokens, at_end=not more)
            raise
        return more

    def _feed_from_cache(self, dataset: Dataset, buffer: ShufflingBuffer) -> bool:
        start = self.current_row_idx
        stop = min(start + self.store_batch_size_prompts, len(dataset))
        if start < stop:
            held = len(buffer)
            try:
                with may_be_broken_off():
                    rows = self._read_cached(dataset, start, stop)
                    excludes = self.exclude_special_tokens is not None
                    ids = cache.read_cached_token_ids(dataset, start, stop) if excludes else None
                self._add_kept(buffer, rows, ids)
            except BaseException:
                buffer.take_back(held)
                raise
        self.current_row_idx = stop if stop < len(dataset) else 0
        return stop < len(dataset)

    def _add_kept(
        self,
        buffer: ShufflingBuffer,
        activations: Float[Tensor, "batch pos d_in"],
        token_ids: Int[Tensor, "batch pos"] | None,
    ) -> None:
        """Add the activations of tokens that are not excluded."""
        if self.exclude_special_tokens is None or token_ids is None:
            buffer.add(activations, self._scale)
            return
        for prompt, ids in zip(activations, token_ids, strict=True):
            buffer.add(filter_excluded((prompt, ids), self.exclude_special_tokens), self._scale)

    def _read_cached(self, dataset: Dataset, start: int, stop: int) -> Float[Tensor, "row pos d"]:
        """Rows of the cache as they are there, on the CPU."""
        names = self._widths_of_hooks()
        parts = [cache.read_cached_rows(dataset, name, start, stop) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _cached_rows(self, dataset: Dataset, start: int, stop: int) -> Float[Tensor, "row pos d"]:
        rows = self._read_cached(dataset, start, stop)
        return rows.to(device=self.device, dtype=self.dtype)

    def _require_cache_holds(self, n_prompts: int) -> Dataset:
        dataset = self.cached_activation_dataset
        if dataset is None:
            raise ValueError("There are no cached activations: cached_activations_path is not set.")
        if n_prompts > len(dataset):
            raise ValueError(
                f"{n_prompts} prompts are asked for at once, but the cached activations have only "
                f"{len(dataset)}. Use a smaller buffer, or cache more."
            )
        return dataset

    @property
    def _positions(self) -> slice:
        return slice(None) if self.seqpos_slice is None else slice(*self.seqpos_slice)

    @property
    def _rows_per_prompt(self) -> int:
        if self.cached_activation_dataset is not None:
            return self.context_size
        return sliced_length(self.context_size, self.seqpos_slice)

    @property
    def _scale(self) -> Any:
        if self.normalize_activations != scaling.EXPECTED_AVERAGE:
            return None
        factor = self._require_factor()
        if isinstance(factor, Tensor):
            return factor.to(device=self.device, dtype=self.dtype)
        return None if factor == 1.0 else factor

    def _require_factor(self) -> Any:
        if self.estimated_norm_scaling_factor is None:
            raise ValueError(
                "The norm scaling factor is not set. Call set_norm_scaling_factor_if_needed() on a "
                "store with normalize_activations='expected_average_only_in' first."
            )
        return self.estimated_norm_scaling_factor

    def _require_model_fits(self) -> None:
        require_hook(self.model, self.hook_name)
        longest = longest_context(self.model)
        if longest is not None and self.context_size > longest:
            raise ValueError(
                f"context_size is {self.context_size}, but the model takes at most {longest} "
                f"tokens. Set context_size to {longest} or less."
            )

    def _run_model(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context *w"]:
        device_type = model_device(self.model).type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.autocast_lm):
            return activations_at(
                self.model,
                tokens,
                self.hook_name,
                self.hook_layer + 1,
                self.model_kwargs,
                fused=self.fused_forward,
            )

    def _flatten_heads(
        self, activations: Float[Tensor, "batch pos *width"]
    ) -> Float[Tensor, "batch pos d_in"]:
        return with_flat_heads(activations, self.hook_name, self.hook_head_index, self.d_in)

    @property
    def _generator(self) -> torch.Generator | None:
        """For `get_buffer`: one of its own when there is a seed, None for the global one."""
        if self.seed is None:
            return None
        place = self.n_dataset_processed + self.current_row_idx
        return torch.Generator().manual_seed((self.seed * 1_000_003 + place) % 2**63)


def with_flat_heads(
    activations: Float[Tensor, "batch pos *width"],
    hook_name: str,
    hook_head_index: int | None,
    d_in: int,
    field: str = "d_in",
) -> Float[Tensor, "batch pos d_in"]:
    """One head of the activations of a hook, or all of them side by side.

    Raises:
        RuntimeError: when their width is not `d_in`, which is the `field` of a config.
        ValueError: when there is no such head.
    """
    if hook_head_index is not None:
        n_heads = activations.shape[2] if activations.ndim > 3 else 0
        if not -n_heads <= hook_head_index < n_heads:
            has = f"has {n_heads} heads" if n_heads else "has no heads, as attn.hook_z has"
            raise ValueError(
                f"hook_head_index is {hook_head_index}, but {hook_name!r} {has}; leave it out, or "
                "choose another."
            )
        activations = activations[:, :, hook_head_index]
    elif activations.ndim > 3:
        activations = activations.flatten(2)
    width = activations.shape[-1]
    if width != d_in:
        raise RuntimeError(
            f"The expanded size of the tensor ({d_in}) must match the existing size "
            f"({width}): {field} is {d_in}, but the activations at {hook_name!r} have a "
            f"width of {width}. Set {field}={width}, or choose another hook."
        )
    return activations
