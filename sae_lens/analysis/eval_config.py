"""What an evaluation computes, and what it found."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple


def get_library_version() -> str:
    """The installed version of the library, or "unknown"."""
    try:
        return version("sae-lens")
    except PackageNotFoundError:
        return "unknown"


def get_git_hash() -> str:
    """The short hash of the repository in the working directory, or "unknown"."""
    return _git_hash(str(Path.cwd()))


@lru_cache(maxsize=8)
def _git_hash(folder: str) -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


@dataclass
class EvalConfig:
    """Which metrics, on how many batches.

    Attributes:
        batch_size_prompts: prompts per batch; the store's own when None.
        n_eval_reconstruction_batches: batches for KL divergence and cross-entropy.
        compute_kl: KL divergence of the model's predictions with the SAE in place.
        compute_ce_loss: cross-entropy with the SAE in place.
        n_eval_sparsity_variance_batches: batches for everything else.
        compute_l2_norms: shrinkage.
        compute_sparsity_metrics: L0 and L1.
        compute_variance_metrics: explained variance, errors, cosine similarity.
        compute_featurewise_density_statistics: how often each feature fires.
        compute_featurewise_weight_based_metrics: norms, biases, encoder against decoder.
        library_version: recorded with the results.
        git_hash: recorded with the results.
        include_misc_metrics: a further group `misc_metrics`: fraction alive, fractions of features
            above 1 % and 10 %, average maximum cosine similarities (quadratic in d_sae).
    """

    batch_size_prompts: int | None = None
    n_eval_reconstruction_batches: int = 10
    compute_kl: bool = False
    compute_ce_loss: bool = False
    n_eval_sparsity_variance_batches: int = 1
    compute_l2_norms: bool = False
    compute_sparsity_metrics: bool = False
    compute_variance_metrics: bool = False
    compute_featurewise_density_statistics: bool = False
    compute_featurewise_weight_based_metrics: bool = False
    library_version: str = field(default_factory=get_library_version)
    git_hash: str = field(default_factory=get_git_hash)
    include_misc_metrics: bool = False

    @property
    def needs_reconstruction(self) -> bool:
        """Whether anything needs the model's predictions."""
        return self.compute_kl or self.compute_ce_loss

    @property
    def needs_density(self) -> bool:
        """Whether anything needs to know how often each feature fires."""
        return self.compute_featurewise_density_statistics or self.include_misc_metrics

    @property
    def needs_activations(self) -> bool:
        """Whether anything needs activations and features."""
        return (
            self.compute_l2_norms
            or self.compute_sparsity_metrics
            or self.compute_variance_metrics
            or self.needs_density
        )


class EvalResult(NamedTuple):
    """What an evaluation found: groups of numbers, and lists with one entry per feature."""

    metrics: dict[str, Any]
    feature_metrics: dict[str, Any]


def get_eval_everything_config(
    batch_size_prompts: int | None = None,
    n_eval_reconstruction_batches: int = 10,
    n_eval_sparsity_variance_batches: int = 1,
) -> EvalConfig:
    """A config with every `compute_*` switched on."""
    return with_switches(
        EvalConfig(
            batch_size_prompts=batch_size_prompts,
            n_eval_reconstruction_batches=n_eval_reconstruction_batches,
            n_eval_sparsity_variance_batches=n_eval_sparsity_variance_batches,
        ),
        SWITCHES,
    )


SWITCHES = tuple(f.name for f in fields(EvalConfig) if f.name.startswith("compute_"))


def with_switches(config: EvalConfig, names: Iterable[str]) -> EvalConfig:
    """The config with the switches of these names on."""
    return replace(config, **dict.fromkeys(names, True))
