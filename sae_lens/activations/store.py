"""`ActivationsStore`: tokens from a dataset, activations from a model, mixed training batches."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens.activations import scaling, store_state
from sae_lens.activations.activation_source import ActivationSource
from sae_lens.activations.buffer import ShufflingBuffer
from sae_lens.activations.mixing import BatchMixer
from sae_lens.activations.model_adapters import model_device
from sae_lens.activations.prefetch import Prefetcher
from sae_lens.activations.store_making import StoreMaking
from sae_lens.atomic_files import atomic_save_safetensors
from sae_lens.constants import DTYPE_MAP
from sae_lens.errors import stumbling_over


class ActivationsStore(StoreMaking, ActivationSource):
    """Streams a dataset through a language model and serves the activations of one hook, mixed.

    Batches come from `next_batch`, or by iterating over the store. Every token is served once an
    epoch, in an order that depends on `seed` and the epoch alone, in batches of full size. Above
    the shuffling buffer, which lies on `device`, no more memory is used than for one batch of the
    language model and one training batch.
    """

    def __init__(
        self,
        model: Any,
        dataset: Any,
        streaming: bool,
        hook_name: str,
        hook_layer: int,
        hook_head_index: int | None,
        context_size: int,
        d_in: int,
        n_batches_in_buffer: int,
        total_training_tokens: int,
        store_batch_size_prompts: int,
        train_batch_size_tokens: int,
        prepend_bos: bool,
        normalize_activations: str,
        device: torch.device | str,
        dtype: str | torch.dtype,
        cached_activations_path: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        autocast_lm: bool = False,
        dataset_trust_remote_code: bool | None = None,
        seqpos_slice: tuple[int | None, ...] = (None,),
        exclude_special_tokens: Tensor | None = None,
        *,
        seed: int | None = None,
        disable_concat_sequences: bool = False,
        activations_mixing_fraction: float = 0.5,
        n_batches_for_norm_estimate: int = 1000,
        prefetch_batches: int = 0,
    ):
        """Open the dataset and find its column; the model does not run yet.

        Args:
            model: needs `run_with_cache`, for text also `to_tokens` and a `tokenizer`.
            dataset: a path, or anything that gives rows when iterated.
            streaming: for a path: read rows as they are needed.
            hook_name: where in the model.
            hook_layer: its layer; models that can stop there do.
            hook_head_index: one head of an activation that has a head axis.
            context_size: tokens per prompt.
            d_in: width of the activations, heads flattened.
            n_batches_in_buffer: size of the shuffling buffer, in batches of the language model.
            total_training_tokens: the training budget, to warn when the data are fewer.
            store_batch_size_prompts: prompts in a batch of the language model.
            train_batch_size_tokens: activations in a training batch.
            prepend_bos: put a BOS token at a prompt's start and between texts; only for text.
            normalize_activations: "expected_average_only_in" scales by an estimated factor here,
                all else is up to the SAE.
            device: where the buffer lies.
            dtype: of the buffer.
            cached_activations_path: read activations from there, not from the model.
            model_kwargs: for the forward pass.
            autocast_lm: run the model in bfloat16 autocast.
            dataset_trust_remote_code: for a path, where the datasets library still has it.
            seqpos_slice: which positions of a prompt to use, as arguments of `slice`.
            exclude_special_tokens: ids whose activations are left out of training batches.
            seed: of every permutation; without it torch's global generator is used.
            disable_concat_sequences: one text per prompt; texts that are too short are skipped.
            activations_mixing_fraction: which part of the buffer stays when the rest is served.
            n_batches_for_norm_estimate: for `set_norm_scaling_factor_if_needed`.
            prefetch_batches: how many training batches a thread makes ahead of `next_batch`; see
                `pause_prefetching`. As many as a refill of half the buffer gives hide it entirely.

        Raises:
            ValueError: when the dataset is empty or has no usable column, rows are shorter than
                context_size, its tokenizer is not the model's, or the dtype is unknown.
            FileNotFoundError: when there are no cached activations at their path.
        """
        if str(dtype) not in DTYPE_MAP:
            raise ValueError(f"Unknown dtype {dtype!r}: allowed are {', '.join(DTYPE_MAP)}.")
        super().__init__(
            model,
            dataset,
            streaming,
            context_size,
            store_batch_size_prompts,
            total_training_tokens,
            prepend_bos,
            device,
            dataset_trust_remote_code,
            disable_concat_sequences,
        )
        self.hook_name = hook_name
        self.hook_layer = hook_layer
        self.hook_head_index = hook_head_index
        self.d_in = d_in
        self.n_batches_in_buffer = n_batches_in_buffer
        self.half_buffer_size = n_batches_in_buffer // 2
        self.train_batch_size_tokens = train_batch_size_tokens
        self.normalize_activations = normalize_activations
        self.dtype = DTYPE_MAP[str(dtype)]
        self.cached_activations_path = cached_activations_path
        self.model_kwargs = {} if model_kwargs is None else model_kwargs
        self.autocast_lm = autocast_lm
        self.seqpos_slice = seqpos_slice
        self.exclude_special_tokens = exclude_special_tokens
        self.seed = seed
        self.activations_mixing_fraction = activations_mixing_fraction
        self.n_batches_for_norm_estimate = n_batches_for_norm_estimate
        self.estimated_norm_scaling_factor = None
        self._dataloader: Iterator[Tensor] | None = None
        self._mixer: BatchMixer | None = None
        self._ahead = self._new_prefetcher(prefetch_batches)
        self.cached_activation_dataset = self.load_cached_activation_dataset()

    def evaluation_stream(self, dataset: Any = None) -> ActivationsStore:
        """A store of the same kind that begins at the start of its data and shares no position.

        Args:
            dataset: other data to evaluate on; by default the same.
        """
        self.pause_prefetching()
        other = copy.copy(self)
        other._ahead = other._new_prefetcher(0)
        if dataset is not None:
            other.total_training_tokens = 0  # what is evaluated need not suffice for training
            other._open_dataset(dataset)
        elif hasattr(self.dataset, "load_state_dict"):
            # A streaming dataset keeps its position in itself, so each needs one of its own.
            other.dataset = copy.deepcopy(self.dataset)
        other._rewind_tokens()
        other.current_row_idx = 0
        other._mixer = other._dataloader = None
        return other

    @property
    def storage_buffer(self) -> Float[Tensor, "row 1 d_in"]:
        """Rows that wait for the next mixing; half a buffer is read on first access.

        A view of the shuffling buffer: valid until the next batches are drawn.

        Raises:
            ValueError: when the buffer cannot be mixed, being too small.
        """
        self.pause_prefetching()
        if self._storage_buffer is None:
            self._get_mixer().load(self._feed, max_reads=self.half_buffer_size)
        assert self._storage_buffer is not None
        return self._storage_buffer

    @property
    def _storage_buffer(self) -> Float[Tensor, "row 1 d_in"] | None:
        if self._mixer is None or not self._mixer.filled:
            return None
        return self._mixer.buffer.arranged()[self._mixer.n_scheduled :].unsqueeze(1)

    @_storage_buffer.setter
    def _storage_buffer(self, rows: Tensor | None) -> None:
        self._drop_buffers()
        if rows is not None:
            mixer = self._get_mixer()
            mixer.buffer.add(rows.reshape(-1, self.d_in))
            mixer.filled = True

    @property
    def dataloader(self) -> Iterator[Float[Tensor, "batch 1 d_in"]]:
        """The batches of the current pass."""
        if self._dataloader is None:
            self._dataloader = self.get_data_loader()
        return self._dataloader

    def get_data_loader(self) -> Iterator[Float[Tensor, "batch 1 d_in"]]:
        """Fill and mix the buffer; the batches of one pass, until only the part to keep is left.

        Raises:
            ValueError: when the buffer holds less than a training batch, or the data do.
        """
        self.pause_prefetching()
        mixer = self._get_mixer()
        mixer.start_pass(self._feed)
        return self._batches_of_pass(mixer, mixer.n_passes)

    def next_batch(self) -> Float[Tensor, "batch 1 d_in"]:
        """The next `train_batch_size_tokens` rows, [train_batch_size_tokens, 1, d_in].

        Raises:
            ValueError: when the buffer holds less than a training batch, or the data do.
        """
        return self._ahead.take()

    def pause_prefetching(self) -> None:
        """Bring the thread that makes batches ahead to rest, until the next `next_batch`.

        While it runs, model and data are its own. The methods of the store pause it by themselves;
        whoever uses the model otherwise calls this first. Afterwards no thread is left, so this is
        also how to close the store. Batches made ahead are kept and part of the state.
        """
        self._ahead.pause()

    def _new_prefetcher(self, n_batches: int) -> Prefetcher:
        return Prefetcher(self._make_batch, n_batches, self._devices)

    def _devices(self) -> set[torch.device]:
        return {self.device, model_device(self.model)}

    def _make_batch(self) -> Float[Tensor, "batch 1 d_in"]:
        try:
            batch = next(self.dataloader, None)
            if batch is None:
                self._dataloader = self.get_data_loader()
                batch = next(self._dataloader)
            return batch
        except BaseException:
            if self._mixer is not None:
                self._resume_pass()  # the iterator in which something was raised is over
            raise

    def __iter__(self) -> ActivationsStore:
        return self

    def __next__(self) -> Float[Tensor, "batch 1 d_in"]:
        return self.next_batch()

    def set_norm_scaling_factor_if_needed(self) -> None:
        """Estimate the factor where the store scales and does not know it yet."""
        if (
            self.normalize_activations == scaling.EXPECTED_AVERAGE
            and self.estimated_norm_scaling_factor is None
        ):
            self.estimated_norm_scaling_factor = self.estimate_norm_scaling_factor(
                self.n_batches_for_norm_estimate
            )

    def estimate_norm_scaling_factor(self, n_batches_for_norm_estimate: int = 1000) -> Any:
        """sqrt(d_in) / mean over batches of the mean norm in a batch; see `scaling`."""
        estimate = self._new_factor_estimate()
        description = "Estimating norm scaling factor"
        with closing(self.look_ahead(n_batches_for_norm_estimate)) as batches:
            for batch in tqdm(batches, desc=description, total=n_batches_for_norm_estimate):
                estimate.add(batch)
        return estimate.factor()

    def _new_factor_estimate(self) -> scaling.FactorEstimate:
        return scaling.FactorEstimate(self.d_in)

    def look_ahead(self, n_batches: int) -> Generator[Float[Tensor, "batch 1 d_in"], None, None]:
        """The next batches, unscaled, at most all data once; close it when it is not used up.

        Afterwards the data are rewound where that is possible, so that none is missed.
        """
        with self._looking_ahead():
            for _ in range(n_batches):
                yield self.next_batch()
                if self._epoch_is_served():
                    return

    @contextmanager
    def _looking_ahead(self) -> Iterator[None]:
        """Inside, batches are unscaled.

        They are dropped from the buffers afterwards, and the data are rewound to where they stood
        where that is possible, so that training sees every token.
        """
        self.pause_prefetching()
        factor, ahead = self.estimated_norm_scaling_factor, self._ahead
        position = store_state.capture_position(self)
        self._ahead = self._new_prefetcher(0)
        self.estimated_norm_scaling_factor = 1.0
        try:
            with warnings.catch_warnings():
                if position is not None:
                    warnings.filterwarnings("ignore", "All samples in the training dataset")
                yield
        finally:
            self.estimated_norm_scaling_factor, self._ahead = factor, ahead
            self._drop_buffers()
            if position is not None:
                store_state.restore_position(self, position)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that changes, as a snapshot: see `store_state`."""
        self.pause_prefetching()
        return {name: value.clone() for name, value in store_state.capture(self).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict`, also one of older versions of the library.

        Raises:
            ValueError: when the rows in it do not fit this store.
        """
        self.pause_prefetching()
        store_state.restore(self, state)

    def save(self, file_path: str | Path) -> None:
        """Write the state to a safetensors file."""
        self.pause_prefetching()
        atomic_save_safetensors(store_state.capture(self), file_path)

    def load(self, file_path: str | Path) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            ValueError: when the file is damaged, or its rows do not fit this store.
        """
        try:
            state = load_file(str(file_path))
        except SafetensorError as error:
            raise ValueError(f"{file_path} is no whole safetensors file: {error}.") from error
        try:
            with stumbling_over(file_path, ValueError):
                self.load_state_dict(state)
        except KeyError as error:
            raise ValueError(f"{file_path} lacks {error}, which goes with what it has.") from error

    def _get_mixer(self) -> BatchMixer:
        """The mixer with its buffer, made on first use.

        Raises:
            ValueError: when the buffer would be too small to be mixed or to give a batch.
        """
        if self._mixer is None:
            self._mixer = self._new_mixer()
        return self._mixer

    def _new_mixer(self) -> BatchMixer:
        if self.n_batches_in_buffer < 2:
            raise ValueError(
                f"n_batches_in_buffer is {self.n_batches_in_buffer}, but mixing needs at least 2: "
                "half of the buffer stays while the other half is served."
            )
        rows_per_read = self.store_batch_size_prompts * self._rows_per_prompt
        size = 2 * self.half_buffer_size * rows_per_read
        if not 0 < self.train_batch_size_tokens <= size:
            raise ValueError(
                f"The buffer holds {size} activations ({2 * self.half_buffer_size} batches of "
                f"{self.store_batch_size_prompts} prompts with {self._rows_per_prompt} positions), "
                f"but train_batch_size_tokens is {self.train_batch_size_tokens}. It must be "
                "between 1 and the size of the buffer: raise n_batches_in_buffer or "
                "store_batch_size_prompts, or lower train_batch_size_tokens."
            )
        if not 0.0 <= self.activations_mixing_fraction < 1.0:
            raise ValueError(
                f"activations_mixing_fraction is {self.activations_mixing_fraction}, but must be "
                "at least 0 and below 1: it is the part of the buffer that is not served."
            )
        # With almost a batch left over, one more read must still fit.
        capacity = max(size, self.train_batch_size_tokens - 1 + rows_per_read)
        mixer = BatchMixer(
            ShufflingBuffer(capacity, self.d_in, self.dtype, self.device),
            batch_size=self.train_batch_size_tokens,
            rows_to_keep=int(size * self.activations_mixing_fraction),
            rows_per_read=rows_per_read,
            seed=self.seed,
        )
        if self.n_dataset_processed > 0:
            # The epoch began before: what is left of it may be less than a batch.
            mixer.rows_in_epoch = self.train_batch_size_tokens
        return mixer

    def _batches_of_pass(self, mixer: BatchMixer, n_pass: int) -> Generator[Tensor, None, None]:
        while mixer.n_passes == n_pass and mixer.batches_left > 0:
            yield mixer.take_batch().unsqueeze(1)

    def _resume_pass(self) -> None:
        """Serve the rest of the pass that the mixer's counters tell of."""
        mixer = self._get_mixer()
        self._dataloader = self._batches_of_pass(mixer, mixer.n_passes)

    def _drop_buffers(self) -> None:
        self._dataloader = None
        self._ahead.waiting = ()
        if self._mixer is not None:
            self._mixer.drop()

    def _epoch_is_served(self) -> bool:
        mixer = self._mixer
        return (
            mixer is not None
            and mixer.epoch_over
            and len(mixer.buffer) < self.train_batch_size_tokens
        )
