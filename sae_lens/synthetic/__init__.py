"""Activations made of known sparse features, and how well SAEs find them."""

from sae_lens.synthetic.benchmark import (
    ARCHITECTURES,
    BenchmarkConfig,
    BenchmarkResult,
    run_benchmark,
    train_on_synthetic,
)
from sae_lens.synthetic.data import SyntheticConfig, SyntheticData, SyntheticSample
from sae_lens.synthetic.metrics import Recovery, recovery_of

__all__ = [
    "ARCHITECTURES",
    "BenchmarkConfig",
    "BenchmarkResult",
    "Recovery",
    "SyntheticConfig",
    "SyntheticData",
    "SyntheticSample",
    "recovery_of",
    "run_benchmark",
    "train_on_synthetic",
]
