"""A language model that is nothing but its tokens, and stores over it."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from sae_lens.activations.store import ActivationsStore
from tests.helpers import WordTokenizer

D_IN = 4
HOOK = "blocks.0.hook_resid_pre"


class TokenEcho:
    """Activations are [token, position, 1, 0...]: each row says where it comes from."""

    def __init__(self, d_in: int = D_IN):
        self.d_in = d_in
        self.tokenizer: Any = WordTokenizer()
        self.calls: list[dict[str, Any]] = []
        self.batch_sizes: list[int] = []

    def parameters(self) -> Any:
        yield torch.zeros(1)

    def to_tokens(self, text: str, **flags: bool) -> Tensor:
        assert flags == {"truncate": False, "move_to_device": False, "prepend_bos": False}
        return torch.tensor([self.tokenizer.encode(text)])

    def run_with_cache(self, tokens: Tensor, **kwargs: Any) -> tuple[None, dict[str, Tensor]]:
        self.calls.append(kwargs)
        self.batch_sizes.append(len(tokens))
        activations = torch.zeros(*tokens.shape, self.d_in)
        activations[..., 0] = tokens
        activations[..., 1] = torch.arange(tokens.shape[1])
        activations[..., 2] = 1.0
        return None, {kwargs["names_filter"][0]: activations}


def numbered_rows(n_rows: int = 30, context_size: int = 5) -> Dataset:
    """Tokenised rows in which every token occurs once: 0, 1, 2, ..."""
    return Dataset.from_dict(
        {"tokens": torch.arange(n_rows * context_size).view(n_rows, context_size).tolist()}
    )


def make_store(model: Any = None, dataset: Any = None, **fields: Any) -> ActivationsStore:
    """A store over `TokenEcho` with a buffer of 8 batches of 2 prompts with 5 tokens."""
    arguments: dict[str, Any] = {
        "streaming": False,
        "hook_name": HOOK,
        "hook_layer": 0,
        "hook_head_index": None,
        "context_size": 5,
        "d_in": D_IN,
        "n_batches_in_buffer": 8,
        "total_training_tokens": 10,
        "store_batch_size_prompts": 2,
        "train_batch_size_tokens": 16,
        "prepend_bos": False,
        "normalize_activations": "none",
        "device": torch.device("cpu"),
        "dtype": "float32",
        "seed": 0,
    }
    return ActivationsStore(
        TokenEcho() if model is None else model,
        numbered_rows() if dataset is None else dataset,
        **{**arguments, **fields},
    )


def tokens_of(batch: Tensor) -> list[int]:
    """The tokens that rows of `TokenEcho` belong to."""
    return batch.reshape(-1, batch.shape[-1])[:, 0].long().tolist()


def serve(store: ActivationsStore, n_batches: int) -> list[int]:
    """The tokens of the next batches, in order."""
    return [token for _ in range(n_batches) for token in tokens_of(store.next_batch())]
