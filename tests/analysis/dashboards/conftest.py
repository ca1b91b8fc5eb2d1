"""A two-layer random model, a random SAE on it, and random tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens.saes import SAE, StandardSAEConfig

HOOK = "blocks.1.hook_resid_pre"
BOS = 0


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    torch.manual_seed(1)
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=12, n_ctx=16, d_head=6, n_heads=2, d_vocab=5000, act_fn="relu",
            normalization_type="LN", seed=1, device="cpu",
        )
    )  # fmt: skip


def make_sae(d_in: int = 12, d_sae: int = 24, **facts: Any) -> SAE:
    """A ReLU SAE whose features fire on roughly a third of the tokens."""
    torch.manual_seed(2)
    metadata = {"hook_name": HOOK, "context_size": 16, "prepend_bos": True, **facts}
    sae = SAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, metadata=metadata))
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_in, d_sae))
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=1))
        sae.b_enc.fill_(-0.02)
    return sae


@pytest.fixture(scope="module")
def sae() -> SAE:
    return make_sae()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    tokens = torch.randint(1, 5000, (30, 16), generator=torch.Generator().manual_seed(3))
    tokens[:, 0] = BOS
    return tokens
