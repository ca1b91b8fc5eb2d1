"""The tokens of an evaluation: which ones, which of them count, and how activations are scaled."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens.activations.datasets_loading import special_token_ids
from sae_lens.activations.model_adapters import vocabulary_size
from sae_lens.activations.scaling import EXPECTED_AVERAGE, scaled, unscaled
from sae_lens.activations.token_source import TokenSource
from sae_lens.analysis.interventions import Scaling, fact

logger = logging.getLogger(__name__)


def token_batches(
    store: Any, n_batches: int, batch_size: int, what: str, verbose: bool
) -> Iterator[Tensor]:
    """Batches of prompts from a store, with a progress bar if `verbose`.

    Raises:
        ValueError: when one batch holds more prompts than a tokenised dataset has rows.
    """
    _require_rows(store, batch_size)
    bar = tqdm(range(n_batches), desc=f"{what} batches", disable=not verbose)
    return (store.get_batch_tokens(batch_size) for _ in bar)


def _require_rows(store: Any, batch_size: int) -> None:
    dataset = getattr(store, "dataset", None)
    n_rows = len(dataset) if isinstance(dataset, Sized) else None
    tokenized = getattr(store, "is_dataset_tokenized", False) is True
    if tokenized and n_rows is not None and n_rows < batch_size:
        raise ValueError(
            f"An evaluation batch has {batch_size} prompts, but the dataset has only {n_rows} "
            f"rows; set batch_size_prompts to {n_rows} or less, or give more data."
        )


def all_ignored(
    sae: Any, store: Any, model: Any, ignore_tokens: Collection[int | None] | None
) -> frozenset[int]:
    """Ids to leave out: the caller's, the store's, and those the SAE was trained without."""
    ids = {int(token) for token in ignore_tokens or () if token is not None}
    excluded = getattr(store, "exclude_special_tokens", None)
    if isinstance(excluded, Tensor):
        ids |= set(excluded.tolist())
    trained_without = fact(sae.cfg, "exclude_special_tokens")
    if trained_without is True:
        tokenizer = getattr(model, "tokenizer", None)
        ids |= set(special_token_ids(tokenizer)) if tokenizer is not None else set()
    elif isinstance(trained_without, (list, tuple, set)):
        ids |= {int(token) for token in trained_without}
    return frozenset(ids)


def not_ignored(
    tokens: Int[Tensor, "batch pos"], ignored: Collection[int]
) -> Bool[Tensor, "batch pos"]:
    """Which tokens count."""
    ids = torch.tensor(sorted(ignored), dtype=tokens.dtype, device=tokens.device)
    return ~torch.isin(tokens, ids)


def kept_positions(
    tokens: Int[Tensor, "batch pos"], ignored: Collection[int], sae: Any, store: Any
) -> Bool[Tensor, "batch pos"]:
    """Where the SAE is judged: tokens that count, at positions it was trained on."""
    return not_ignored(tokens, ignored) & trained_positions(tokens, sae, store)


def norm_limit(sae: Any) -> float | None:
    """The longest raw activation that the SAE was trained on; None for any length."""
    multiple, median = (fact(sae.cfg, f"norm_filter_{name}") for name in ("multiple", "median"))
    return None if multiple is None or median is None else float(multiple) * float(median)


def without_overlong(
    sae: Any, kept: Bool[Tensor, "batch pos"], inputs: Float[Tensor, "batch pos d_in"]
) -> Bool[Tensor, "batch pos"]:
    """Kept positions at which the SAE's raw input is no longer than what it was trained on."""
    limit = norm_limit(sae)
    if limit is None:
        return kept
    return kept & (inputs.float().norm(dim=-1) <= limit).to(kept.device)


def trained_positions(
    tokens: Int[Tensor, "batch pos"], sae: Any, store: Any
) -> Bool[Tensor, "batch pos"]:
    """The positions that the SAE was trained on, whatever token is there."""
    positions = getattr(store, "seqpos_slice", None) or getattr(sae.cfg, "seqpos_slice", None)
    in_slice = torch.zeros_like(tokens, dtype=torch.bool)
    in_slice[:, slice(*(positions or (None,)))] = True
    return in_slice


def nothing_left(ignored: Collection[int]) -> str:
    """The message of an evaluation over zero tokens."""
    shown = sorted(ignored)[:10]
    return (
        "The evaluation is over zero tokens: every one is ignored "
        f"({len(ignored)} ids, among them {shown}) or outside of seqpos_slice. Ignore fewer tokens "
        "or give other data."
    )


def _unchanged(activations: Tensor) -> Tensor:
    return activations


def scaling_for(store: Any, sae: Any) -> Scaling:
    """How activations are scaled for the SAE; not at all once the factor is folded into it."""
    if getattr(store, "normalize_activations", "none") != EXPECTED_AVERAGE:
        return Scaling(_unchanged, _unchanged)
    folded = getattr(sae.cfg, "normalize_activations", EXPECTED_AVERAGE) != EXPECTED_AVERAGE
    if folded and getattr(store, "estimated_norm_scaling_factor", None) is None:
        return Scaling(_unchanged, _unchanged)
    return Scaling(store.apply_norm_scaling_factor, store.unscale)


class FixedTokens:
    """The same prompts again and again, with the methods of a store that evaluations use."""

    exclude_special_tokens = None

    def __init__(
        self,
        tokens: Int[Tensor, "prompts pos"],
        batch_size_prompts: int,
        seqpos_slice: tuple[int | None, ...] | None,
    ):
        self.tokens = tokens
        self.context_size = tokens.shape[1]
        self.store_batch_size_prompts = batch_size_prompts
        self.seqpos_slice = seqpos_slice
        self.estimated_norm_scaling_factor: float | None = None
        self._next = 0

    @property
    def normalize_activations(self) -> str:
        """Whether activations are scaled."""
        return "none" if self.estimated_norm_scaling_factor is None else EXPECTED_AVERAGE

    def apply_norm_scaling_factor(self, activations: Tensor) -> Tensor:
        """Activations as the SAE is trained on them."""
        factor = self.estimated_norm_scaling_factor
        return activations if factor is None else scaled(activations, factor)

    def unscale(self, activations: Tensor) -> Tensor:
        """The opposite of scaling."""
        factor = self.estimated_norm_scaling_factor
        return activations if factor is None else unscaled(activations, factor)

    def reset_input_dataset(self) -> None:
        """Begin at the first prompt again."""
        self._next = 0

    def get_batch_tokens(self, batch_size: int | None = None) -> Int[Tensor, "batch pos"]:
        """The next prompts; the last batch may be short."""
        start = self._next
        self._next += batch_size or self.store_batch_size_prompts
        return self.tokens[start : self._next]


def check_held_out(tokens: Int[Tensor, "prompts pos"], model: Any) -> None:
    """Check a fixed set of tokens.

    Raises:
        ValueError: when there are none, or ids outside of the model's vocabulary.
    """
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(
            f"Held-out tokens have shape {tuple(tokens.shape)}; give at least one prompt of at "
            "least one token, as [prompts, context]."
        )
    limit = vocabulary_size(model)
    if limit is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < limit:
        raise ValueError(
            f"The held-out tokens have ids from {int(tokens.min())} to {int(tokens.max())}, but "
            f"the model's vocabulary is 0 to {limit - 1}. Tokenise them for this model."
        )


def first_prompts(source: TokenSource, n_prompts: int) -> Int[Tensor, "prompts pos"]:
    """The first prompts of some data; fewer, with a warning, when there are fewer.

    Raises:
        ValueError: when the data hold no whole prompt.
    """
    rows = list(islice(source.iterable_sequences, n_prompts))
    if not rows:
        raise ValueError(
            f"The held-out data hold no prompt of {source.context_size} tokens; give longer texts, "
            "or a smaller context_size."
        )
    if len(rows) < n_prompts:
        logger.warning(
            "The held-out data hold %d prompts, not the %d asked for.", len(rows), n_prompts
        )
    return torch.stack(rows).cpu()
