"""`language_model_sae_runner`, the way to start a run before version 3."""

from __future__ import annotations

import warnings
from typing import Any

from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes.training import TrainingSAE


def language_model_sae_runner(cfg: Any) -> TrainingSAE:
    """Deprecated: use `SAETrainingRunner(cfg).run()`, the result of which this returns."""
    warnings.warn(
        "language_model_sae_runner(cfg) is deprecated; use SAETrainingRunner(cfg).run().",
        DeprecationWarning,
        stacklevel=2,
    )
    return SAETrainingRunner(cfg).run()
