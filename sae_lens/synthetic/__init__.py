"""Activations made of known sparse features, and how well SAEs find them."""

from sae_lens.synthetic.architectures import architectures
from sae_lens.synthetic.benchmark import (
    BenchmarkConfig,
    BenchmarkResult,
    run_benchmark,
    train_on_synthetic,
)
from sae_lens.synthetic.data import SyntheticConfig, SyntheticData, SyntheticSample
from sae_lens.synthetic.metrics import Recovery, recovery_of
from sae_lens.synthetic.views import View, view_of

__all__ = [
    "BenchmarkConfig",
    "BenchmarkResult",
    "Recovery",
    "SyntheticConfig",
    "SyntheticData",
    "SyntheticSample",
    "View",
    "architectures",
    "recovery_of",
    "run_benchmark",
    "train_on_synthetic",
    "view_of",
]
