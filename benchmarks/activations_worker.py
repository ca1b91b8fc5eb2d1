"""Gathering activations: `activations_worker.py FAMILY`, with options from the standard input.

The model has GPT-2-small's shape and random weights. The contender named "bare" is its transformers
implementation cut off at the hooked layer, with scaled-dot-product attention and nothing around it;
the others serve shuffled batches from their activation store. A unit is what half a buffer takes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from serving import Server

server = Server()

import torch  # noqa: E402

OPTIONS: dict[str, Any] = server.next_case()
LAYER, CONTEXT, PROMPTS, BUFFER, DEVICE = (
    OPTIONS[name] for name in ("layer", "context", "prompts", "buffer", "device")
)
VOCABULARY = 50257


def serve_bare() -> None:
    """Forward passes of the model that ends where the hook is."""
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_layer=LAYER, attn_implementation="sdpa")).to(DEVICE).eval()
    tokens = torch.randint(0, VOCABULARY, (PROMPTS, CONTEXT), device=DEVICE)
    done = {"tokens": 0}
    while True:
        server.wait_for_request(**done)
        with torch.no_grad():
            for _ in range(max(1, BUFFER // 2)):
                model(tokens, use_cache=False)
        done["tokens"] = max(1, BUFFER // 2) * tokens.numel()


def hooked_model(n_layers: int) -> Any:
    """A TransformerLens model of GPT-2-small's shape but for the depth."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=n_layers, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072,
        d_vocab=VOCABULARY, act_fn="gelu_new", normalization_type="LN", device=DEVICE,
    )  # fmt: skip
    return HookedTransformer(config).eval()


def token_rows(rows: int) -> Any:
    """A dataset of random tokens, one context per row."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (rows, CONTEXT), generator=generator)
    return Dataset.from_dict({"tokens": tokens.tolist()})


def serve_store() -> None:
    """Batches from the importable `sae_lens`'s store; tokens are those the model read."""
    import sae_lens
    from sae_lens import ActivationsStore

    is_six = OPTIONS["family"] == "sae_lens-6"  # counts its buffer in contexts, not in batches
    options: dict[str, Any] = {"n_batches_in_buffer": BUFFER * (PROMPTS if is_six else 1)}
    if not is_six:
        options["hook_layer"] = LAYER
    store = ActivationsStore(
        model=hooked_model(12), dataset=token_rows(4096), streaming=False,
        hook_name=f"blocks.{LAYER}.hook_resid_pre", hook_head_index=None, context_size=CONTEXT,
        d_in=768, total_training_tokens=10**8, store_batch_size_prompts=PROMPTS,
        train_batch_size_tokens=PROMPTS * CONTEXT, prepend_bos=False, normalize_activations="none",
        device=torch.device(DEVICE), dtype="float32", **options,
    )  # fmt: skip
    server.final_values = lambda: {"version": sae_lens.__version__}
    values: dict[str, Any] = {}
    while True:
        server.wait_for_request(**values)
        before = store.n_dataset_processed
        for _ in range(max(1, BUFFER // 2)):
            store.next_batch()
        values["tokens"] = (store.n_dataset_processed - before) * CONTEXT


def main() -> None:
    """Serve the contender named in the options."""
    torch.manual_seed(0)
    if torch.device(DEVICE).type == "cuda":
        server.synchronize = torch.cuda.synchronize
    serve_bare() if OPTIONS["family"] == "ours-bare" else serve_store()


if __name__ == "__main__":
    main()
