"""`CacheActivationsRunner`: activations of a language model, written to disk for many trainings.

Tokens come first: all rows are collected in a file that is small beside the activations. From then
on it is known how many rows there are, and any of them can be had at any time. So the rows can go
through the model in the shuffled order itself, one batch in memory at a time and nothing written
twice, and a run that was interrupted can go on with the first shard that is not there.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import HfApi
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sae_lens.activations.cache import TOKEN_IDS_COLUMN
from sae_lens.activations.cache_files import (
    cache_features,
    consolidate_shards,
    new_shard,
    rows_as_table,
)
from sae_lens.activations.cache_folder import CacheFolder, free_bytes, open_cache_folder
from sae_lens.activations.compilation import compile_model
from sae_lens.activations.dataset_publishing import push_dataset
from sae_lens.activations.duration import estimated_seconds, readable_time
from sae_lens.activations.model_adapters import activations_at_hooks, model_device
from sae_lens.activations.model_loading import load_model
from sae_lens.activations.permutation import shuffled_rows
from sae_lens.activations.store import ActivationsStore
from sae_lens.activations.store_settings import sliced_length
from sae_lens.config.cache_activations import CacheActivationsRunnerConfig
from sae_lens.constants import DTYPE_MAP
from sae_lens.hook_names import layer_of

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

__all__ = ["DTYPE_MAP", "CacheActivationsRunner", "_mk_activations_store"]

# What may differ between a run and the one it goes on with: neither rows nor files depend on it.
_WITHOUT_EFFECT_ON_DATA = frozenset(
    {
        "new_cached_activations_path", "device", "compile_llm", "llm_compilation_mode", "streaming",
        "dataset_trust_remote_code", "hf_repo_id", "hf_num_shards", "hf_revision",
        "hf_is_private_repo",
    }
)  # fmt: skip
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def _mk_activations_store(
    model: Any,
    cfg: CacheActivationsRunnerConfig,
    override_dataset: Dataset | None = None,
) -> ActivationsStore:
    """A store that gives the tokens and activations of a cache, unmixed and unscaled."""
    return ActivationsStore(
        model=model,
        dataset=cfg.dataset_path if override_dataset is None else override_dataset,
        streaming=cfg.streaming,
        hook_name=cfg.hook_name,
        hook_layer=cfg.hook_layer,
        hook_head_index=None,
        context_size=cfg.context_size,
        d_in=cfg.d_in,
        n_batches_in_buffer=cfg.n_batches_in_buffer,
        total_training_tokens=cfg.training_tokens,
        store_batch_size_prompts=cfg.model_batch_size,
        train_batch_size_tokens=-1,
        prepend_bos=cfg.prepend_bos,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype=cfg.dtype,
        cached_activations_path=None,
        model_kwargs=cfg.model_kwargs,
        autocast_lm=cfg.autocast_lm,
        dataset_trust_remote_code=cfg.dataset_trust_remote_code,
        seqpos_slice=cfg.seqpos_slice,
    )


class CacheActivationsRunner:
    """Runs a language model over a dataset and writes the activations of its hooks to disk."""

    def __init__(self, cfg: CacheActivationsRunnerConfig, override_dataset: Dataset | None = None):
        """Load the model and open the dataset; nothing is written and the model does not run.

        Args:
            cfg: what to cache, and where.
            override_dataset: used instead of `cfg.dataset_path`.
        """
        self.cfg = cfg
        self.model: Any = load_model(
            cfg.model_class_name,
            cfg.model_name,
            device=cfg.device,
            model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
        )
        if cfg.compile_llm:
            self.model = compile_model(self.model, cfg.llm_compilation_mode)
        self.activations_store = _mk_activations_store(self.model, cfg, override_dataset)
        self.context_size = self._get_sliced_context_size(cfg.context_size, cfg.seqpos_slice)
        self.features = cache_features(
            cfg.widths, self.context_size, DTYPE_MAP[cfg.dtype], cfg.cache_token_ids
        )

    def __str__(self) -> str:
        cfg = self.cfg
        n_tokens = cfg.n_seq_in_dataset * self.context_size
        n_bytes = n_tokens * cfg.bytes_per_token
        seconds = estimated_seconds(
            self.model,
            cfg.device,
            self._deepest_layer,
            cfg.n_seq_in_dataset * cfg.context_size,
            n_bytes,
        )
        return "\n".join(
            [
                "Cache of activations:",
                f"  total training tokens: {n_tokens} ({cfg.n_seq_in_dataset} rows of "
                f"{self.context_size})",
                f"  hooks: {', '.join(f'{hook} ({width})' for hook, width in cfg.widths.items())}",
                f"  number of buffers: {cfg.n_buffers} (one file each)",
                f"  tokens per buffer: {cfg.n_tokens_in_buffer}",
                f"  disk space: {n_bytes / 1e9:.2f} GB ({n_bytes} bytes); "
                f"{free_bytes(self._path) / 1e9:.2f} GB are free",
                f"  takes about {readable_time(seconds)}",
                f"  written to: {cfg.new_cached_activations_path}",
                f"Configuration: {cfg}",
            ]
        )

    @torch.no_grad()
    def run(self) -> Dataset:
        """Write the cache, and push it if a repository is configured.

        When the same run was interrupted in the same folder, only what is missing is done.

        Returns:
            The cache, memory-mapped: a column per hook, rows [context_size, d_in] in the order in
            which they are on disk.

        Raises:
            FileExistsError: when the folder holds anything but the same run's beginning.
            OSError: when the disk has less space than the cache needs, or becomes full.
            ValueError: when the data have not even one batch of rows.
            RuntimeError: when a hook's width is not the configured one.
        """
        cfg = self.cfg
        making = {k: v for k, v in asdict(cfg).items() if k not in _WITHOUT_EFFECT_ON_DATA}
        with open_cache_folder(self._path, making, cfg.context_size) as folder:
            if not folder.all_shards_done:
                self._refuse_full_disk(folder)
                try:
                    self._write_shards(folder)
                except OSError as error:
                    if error.errno not in _DISK_FULL:
                        raise
                    raise OSError(
                        errno.ENOSPC,
                        f"The disk of {self._path} is full. The shards that are done are kept: "
                        "make room and run again to go on",
                    ) from error
            dataset = folder.finish()
        if cfg.hf_repo_id:
            push_dataset(
                dataset,
                HfApi(),
                repo_id=cfg.hf_repo_id,
                num_shards=cfg.hf_num_shards,
                private=cfg.hf_is_private_repo,
                revision=cfg.hf_revision,
                description=asdict(cfg),
                description_filename="cache_activations_runner_cfg.json",
                kept_at=str(self._path),
            )
        return dataset

    @property
    def _path(self) -> Path:
        return Path(str(self.cfg.new_cached_activations_path))

    @property
    def _deepest_layer(self) -> int:
        return max(self.cfg.hook_layer, *map(layer_of, self.cfg.widths))

    # -- the three steps: tokens, shards, one dataset ---------------------------------------------

    def _write_shards(self, folder: CacheFolder) -> None:
        self._check_model()
        tokens = self._token_rows(folder)
        per_shard = self.cfg.n_seq_in_buffer
        starts = range(0, len(tokens), per_shard)
        with (
            ThreadPoolExecutor(max_workers=1) as background,
            tqdm(total=len(tokens), desc="Caching activations", unit="rows") as progress,
        ):
            for index, start in enumerate(starts):
                stop = min(start + per_shard, len(tokens))
                if folder.has_shard(index, stop - start):
                    progress.update(stop - start)
                    continue
                with new_shard(folder.shard(index), self.features) as shard:
                    writing = None  # goes on in the background while the model runs
                    for rows in self._batches(start, stop, len(tokens)):
                        table = self._rows_of(tokens[rows])
                        if writing is not None:
                            writing.result()
                        writing = background.submit(shard.write, table)
                        progress.update(len(rows))
                    if writing is not None:
                        writing.result()

    def _check_model(self) -> None:
        """Run one token, so that a wrong hook or width is known before all tokens are collected."""
        self.activations_store.check_model()
        self._activations(torch.zeros(1, 1, dtype=torch.long, device=model_device(self.model)))

    def _token_rows(self, folder: CacheFolder) -> NDArray[np.int32]:
        """All rows of tokens [row, position], in reading order; from the folder if they are there.

        Raises:
            ValueError: when there is no batch of rows, or the folder has those of other data.
        """
        stream = self.activations_store.evaluation_stream()
        if folder.tokens is not None:
            n_first = min(self.cfg.model_batch_size, len(folder.tokens))
            if not np.array_equal(stream.get_batch_tokens(n_first).cpu(), folder.tokens[:n_first]):
                raise FileExistsError(
                    f"{folder.path} is not empty: it has the beginning of a cache of other tokens. "
                    "The dataset or the tokenizer has changed since. Choose another "
                    "new_cached_activations_path, or remove the folder yourself."
                )
            return folder.tokens
        wanted = self.cfg.n_seq_in_dataset
        tokens = folder.collect_tokens(_token_batches(stream, wanted, self.cfg.model_batch_size))
        if len(tokens) == 0:
            raise ValueError(
                f"The dataset has fewer rows of context_size={self.cfg.context_size} tokens than "
                f"one batch (model_batch_size={self.cfg.model_batch_size}); nothing was cached. "
                "Lower model_batch_size, or use more data."
            )
        if len(tokens) < wanted:
            warnings.warn(
                f"The dataset ended after {len(tokens)} of {wanted} rows "
                f"({len(tokens) * self.context_size} of {wanted * self.context_size} tokens): the "
                "cache will hold only these.",
                stacklevel=4,
            )
        return tokens

    def _batches(self, start: int, stop: int, n_rows: int) -> Iterator[NDArray[np.int64]]:
        """Which rows go into the places `start` to `stop` of the cache, batch by batch."""
        size = self.cfg.model_batch_size
        for first in range(start, stop, size):
            last = min(first + size, stop)
            if self.cfg.shuffle:
                yield shuffled_rows(first, last, n_rows, self.cfg.seed)
            else:
                yield np.arange(first, last)

    def _rows_of(self, tokens: NDArray[np.int32]) -> pa.Table:
        """Token rows [batch, context] through the model, as rows of the cache."""
        batch = torch.from_numpy(tokens.astype(np.int64)).to(model_device(self.model))
        columns = self._activations(batch)
        if self.cfg.cache_token_ids:
            columns[TOKEN_IDS_COLUMN] = batch[:, slice(*(self.cfg.seqpos_slice or (None,)))]
        return self._as_table(columns)

    def _as_table(self, columns: dict[str, Tensor]) -> pa.Table:
        dtype = DTYPE_MAP[self.cfg.dtype]
        kinds = dict.fromkeys(self.cfg.widths, dtype)
        on_cpu = {name: rows.to("cpu", kinds.get(name)) for name, rows in columns.items()}
        return rows_as_table(on_cpu, self.features)

    def _activations(
        self, tokens: Int[Tensor, "batch context"]
    ) -> dict[str, Float[Tensor, "batch pos width"]]:
        """The activations of every hook, from one forward pass."""
        cfg, store = self.cfg, self.activations_store
        if len(cfg.widths) == 1:
            return {cfg.hook_name: store.get_activations(tokens).squeeze(2)}
        device_type = model_device(self.model).type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=cfg.autocast_lm):
            cached = activations_at_hooks(
                self.model, tokens, list(cfg.widths), self._deepest_layer + 1, cfg.model_kwargs
            )
        positions = slice(*(cfg.seqpos_slice or (None,)))
        return {
            hook: _with_width(cached[hook][:, positions].flatten(2), hook, width)
            for hook, width in cfg.widths.items()
        }

    def _create_shard(self, buffer: Float[Tensor, "(bs context_size) num_layers d_in"]) -> Dataset:
        """A buffer of `cfg.hook_name`, [(rows * context_size), 1, d_in], as rows of the cache.

        Raises:
            ValueError: when the cache has more columns than the hook's.
        """
        from datasets import Dataset

        if len(self.features) > 1:
            raise ValueError(
                f"One buffer cannot fill the columns {list(self.features)}; leave out hook_names "
                "and cache_token_ids."
            )
        rows = buffer.reshape(-1, self.context_size, self.cfg.d_in)
        return Dataset(self._as_table({self.cfg.hook_name: rows}))

    @staticmethod
    def _consolidate_shards(source_dir: Path, output_dir: Path, copy_files: bool = True) -> Dataset:
        """Join saved datasets `shard_*` to one in `output_dir`, without rewriting their rows.

        Raises:
            NotADirectoryError: when one of the two is no folder.
            FileExistsError: when `output_dir` holds anything but `.tmp_shards`.
            FileNotFoundError: when there is no `shard_00000`.
        """
        return consolidate_shards(Path(source_dir), Path(output_dir), copy_files)

    @staticmethod
    def _get_sliced_context_size(
        context_size: int, seqpos_slice: tuple[int | None, ...] | None
    ) -> int:
        """How many of `context_size` positions the slice keeps."""
        return sliced_length(context_size, seqpos_slice)

    # -- what it will take ------------------------------------------------------------------------

    def _refuse_full_disk(self, folder: CacheFolder) -> None:
        cfg = self.cfg
        n_done = sum(1 for i in range(cfg.n_buffers) if folder.shard(i).is_dir())
        rows_left = max(0, cfg.n_seq_in_dataset - n_done * cfg.n_seq_in_buffer)
        # Beside its numbers, each list of a column has an offset of 4 bytes, as token ids have.
        per_token = cfg.bytes_per_token + 4 * len(cfg.widths) + 4 * cfg.cache_token_ids
        needed = rows_left * self.context_size * per_token
        if folder.tokens is None:
            needed += cfg.n_seq_in_dataset * cfg.context_size * 4
        free = free_bytes(folder.path)
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"The cache needs {needed / 1e9:.2f} GB more, but only {free / 1e9:.2f} GB are "
                f"free on the disk of {folder.path}. Lower training_tokens, use dtype float16 or "
                "bfloat16, or choose another new_cached_activations_path",
            )


def _token_batches(stream: ActivationsStore, n_rows: int, size: int) -> Iterator[Tensor]:
    """Batches of token rows until `n_rows` are there or no whole batch is left."""
    with tqdm(total=n_rows, desc="Collecting tokens", unit="rows") as progress:
        for first in range(0, n_rows, size):
            try:
                batch = stream.get_batch_tokens(min(size, n_rows - first), raise_at_epoch_end=True)
            except StopIteration:
                return
            yield batch
            progress.update(len(batch))


def _with_width(activations: Tensor, hook: str, width: int) -> Tensor:
    if activations.shape[-1] != width:
        raise RuntimeError(
            f"The expanded size of the tensor ({width}) must match the existing size "
            f"({activations.shape[-1]}): d_in or hook_widths says {width} for {hook!r}, whose "
            f"activations have a width of {activations.shape[-1]}. Set hook_widths={{{hook!r}: "
            f"{activations.shape[-1]}}}, or d_in if it is the width of hook_name."
        )
    return activations
