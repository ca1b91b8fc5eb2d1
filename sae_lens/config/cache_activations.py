"""`CacheActivationsRunnerConfig`: which activations to write to disk, and the sizes that follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import torch

from sae_lens.activations.datasets_loading import load_text_dataset
from sae_lens.activations.store_settings import sliced_length
from sae_lens.activations.tokens import TOKENIZED_COLUMNS
from sae_lens.config.early_names import with_current_names
from sae_lens.config.seqpos import _validate_seqpos
from sae_lens.config.validation import _default_cached_activations_path
from sae_lens.constants import DTYPE_MAP, dtype_name

AnyConfig = TypeVar("AnyConfig")

_AT_LEAST_ONE = ("model_batch_size", "d_in", "training_tokens", "context_size")


def _take_early_names(cls: type[AnyConfig]) -> type[AnyConfig]:
    """Let a config be made with the keywords of releases before 3.0."""
    build: Callable[..., None] = cls.__init__

    @wraps(build)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **with_current_names(kwargs))

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


@_take_early_names
@dataclass
class CacheActivationsRunnerConfig:
    """A run that writes the activations of a language model to disk, for many trainings.

    Attributes:
        dataset_path: the text or tokens: a name on the hub, a folder, or the embedded text.
        model_name: the language model.
        model_batch_size: prompts per forward pass.
        hook_name: the hook whose activations are cached.
        hook_layer: its layer; forward passes stop after it.
        d_in: width of the activations, heads flattened.
        training_tokens: tokens to cache, counted after slicing.
        context_size: tokens per prompt; -1 reads it off the first row of a tokenised data set.
        model_class_name: HookedTransformer, HookedMamba or AutoModelForCausalLM.
        new_cached_activations_path: folder to write; derived from data, model and hook.
        shuffle: write the rows in a random order, which is a function of the seed.
        seed: seed of that order.
        dtype: dtype on disk: float32, float16, bfloat16 or float64.
        device: where the language model runs.
        buffer_size_gb: size of one file of the cache; a run that stopped loses at most one.
        hf_repo_id: data set repository to which the cache is pushed.
        hf_num_shards: files in that repository.
        hf_revision: branch that is pushed to.
        hf_is_private_repo: make the repository private.
        model_kwargs: arguments of the language model's forward pass.
        model_from_pretrained_kwargs: arguments for loading the language model.
        compile_llm: compile the blocks of a TransformerLens model that run before the hook (any
            other model is compiled too, but gathers no faster; a warning says so).
        llm_compilation_mode: mode of that compilation.
        prepend_bos: begin prompts with a beginning-of-sequence token; only for text.
        seqpos_slice: positions of a prompt that are cached: arguments of slice().
        streaming: read the data set as rows are needed instead of loading it first.
        autocast_lm: run the language model in bfloat16 where that is safe.
        dataset_trust_remote_code: allow the data set's own loading code where it needs it.
        hook_names: further hooks, cached in the same forward passes, each in a column of its own.
        hook_widths: width of each of them that differs from d_in.
        cache_token_ids: write the token of every position into a column token_ids.
    """

    dataset_path: str
    model_name: str
    model_batch_size: int
    hook_name: str
    hook_layer: int
    d_in: int
    training_tokens: int

    context_size: int = -1
    model_class_name: str = "HookedTransformer"
    new_cached_activations_path: str | None = None
    shuffle: bool = True
    seed: int = 42
    dtype: str = "float32"
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    buffer_size_gb: float = 2.0

    hf_repo_id: str | None = None
    hf_num_shards: int | None = None
    hf_revision: str = "main"
    hf_is_private_repo: bool = False

    model_kwargs: dict[str, Any] = field(default_factory=dict)
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    compile_llm: bool = False
    llm_compilation_mode: str | None = None

    prepend_bos: bool = True
    seqpos_slice: tuple[int | None, ...] = (None,)
    streaming: bool = True
    autocast_lm: bool = False
    dataset_trust_remote_code: bool | None = None

    hook_names: list[str] | None = field(default=None, kw_only=True)
    hook_widths: dict[str, int] | None = field(default=None, kw_only=True)
    cache_token_ids: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if str(self.dtype) not in DTYPE_MAP:
            raise ValueError(
                f"dtype is {self.dtype!r}; allowed are float32, float16, bfloat16 and float64."
            )
        self.dtype = dtype_name(self.dtype)
        self.device = str(self.device)
        if isinstance(self.seqpos_slice, list):
            self.seqpos_slice = tuple(self.seqpos_slice)
        if self.context_size == -1:
            self.context_size = _length_of_first_row(
                self.dataset_path, self.dataset_trust_remote_code
            )
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.seqpos_slice is not None:
            _validate_seqpos(self.seqpos_slice, self.context_size)
        if self.new_cached_activations_path is None:
            self.new_cached_activations_path = _default_cached_activations_path(
                self.dataset_path, self.model_name, self.hook_name, None
            )
        _refuse_unknown_hooks(self.hook_widths, self.widths)
        _ = self.n_tokens_in_buffer
        if self.n_seq_in_dataset == 0:
            raise ValueError(
                f"training_tokens is {self.training_tokens}, less than the "
                f"{self.sliced_context_size} positions of one prompt; nothing would be cached."
            )

    @property
    def widths(self) -> dict[str, int]:
        """The hooks that are cached, `hook_name` first, and the width of each."""
        hooks = [self.hook_name, *(self.hook_names or [])]
        own = self.hook_widths or {}
        return {hook: own.get(hook, self.d_in) for hook in hooks}

    @property
    def sliced_context_size(self) -> int:
        """Positions of a prompt that are cached."""
        return sliced_length(self.context_size, self.seqpos_slice)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the activations of one token, those of all hooks."""
        return sum(self.widths.values()) * DTYPE_MAP[str(self.dtype)].itemsize

    @property
    def n_tokens_in_batch(self) -> int:
        """Cached tokens per forward pass."""
        return self.model_batch_size * self.sliced_context_size

    @property
    def n_tokens_in_buffer(self) -> int:
        """Tokens per file: as many whole batches as fit into `buffer_size_gb`.

        Raises:
            ValueError: when not even one fits.
        """
        fitting = int(self.buffer_size_gb * 1e9) // self.bytes_per_token
        if fitting < self.n_tokens_in_batch:
            needed = self.n_tokens_in_batch * self.bytes_per_token / 1e9
            raise ValueError(
                f"buffer_size_gb is {self.buffer_size_gb}, but one batch of "
                f"{self.model_batch_size} prompts with {self.sliced_context_size} positions needs "
                f"{needed:.3g} GB. Set "
                f"buffer_size_gb to at least {needed:.3g}, or lower model_batch_size."
            )
        return fitting - fitting % self.n_tokens_in_batch

    @property
    def n_batches_in_buffer(self) -> int:
        """Forward passes per file."""
        return self.n_tokens_in_buffer // self.n_tokens_in_batch

    @property
    def n_seq_in_buffer(self) -> int:
        """Rows per file."""
        return self.n_tokens_in_buffer // self.sliced_context_size

    @property
    def n_seq_in_dataset(self) -> int:
        """Rows of the whole cache."""
        return self.training_tokens // self.sliced_context_size

    @property
    def n_buffers(self) -> int:
        """Files of the whole cache."""
        return -(-self.training_tokens // self.n_tokens_in_buffer)


def _length_of_first_row(dataset_path: str, trust_remote_code: bool | None) -> int:
    rows = load_text_dataset(
        dataset_path, split="train", streaming=True, trust_remote_code=trust_remote_code
    )
    first = next(iter(rows), {})
    for column in TOKENIZED_COLUMNS:
        if column in first:
            return len(first[column])
    raise ValueError(
        f"context_size is -1, to be read off the data set {dataset_path!r}, but its first row has "
        f"the columns {list(first)} and neither {' nor '.join(TOKENIZED_COLUMNS)}. Set "
        "context_size, or use a tokenised data set."
    )


def _refuse_unknown_hooks(given: dict[str, int] | None, cached: dict[str, int]) -> None:
    unknown = sorted(set(given or {}) - set(cached))
    if unknown:
        raise ValueError(
            f"hook_widths names {', '.join(unknown)}, which hook_name and hook_names do not: "
            f"cached are {', '.join(cached)}."
        )
