"""About how long forward passes and writing will take, from sizes and one measured product."""

from __future__ import annotations

import time
from typing import Any

import torch

from sae_lens.hook_names import layer_of

_BYTES_WRITTEN_PER_SECOND = 500e6
# The share of a matrix product's rate that a forward pass reaches.
_FORWARD_EFFICIENCY = 0.4


def estimated_seconds(
    model: Any, device: str, deepest_layer: int, n_tokens: int, n_bytes: int
) -> float:
    """Seconds to run `n_tokens` through the layers up to `deepest_layer` and write `n_bytes`."""
    n_weights = 0
    if isinstance(model, torch.nn.Module):
        n_weights = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            # Weights outside of layers (embeddings) are looked up, or are not reached.
            if parameter.ndim > 1 and _is_in_a_layer(name) and layer_of(name) <= deepest_layer
        )
    seconds = n_bytes / _BYTES_WRITTEN_PER_SECOND
    if n_weights > 0:
        seconds += 2.0 * n_weights * n_tokens / (_product_rate(device) * _FORWARD_EFFICIENCY)
    return seconds


def readable_time(seconds: float) -> str:
    """A duration as one would say it."""
    if seconds < 60:
        return "a minute at most"
    if seconds < 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _is_in_a_layer(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _product_rate(device: str) -> float:
    """Floating point operations per second of a product of matrices on `device`."""
    n = 256 if torch.device(device).type == "cpu" else 4096
    x = torch.ones(n, n, device=device)
    (x @ x).sum().item()  # the first product also sets things up
    start = time.perf_counter()
    (x @ x).sum().item()
    return 2.0 * n**3 / max(time.perf_counter() - start, 1e-9)
