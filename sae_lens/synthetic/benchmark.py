"""Train architectures on synthetic activations, at several sparsities, and compare with truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from sae_lens.config.logging import LoggingConfig
from sae_lens.config.trainer import SAETrainerConfig
from sae_lens.saes import SAE, TrainingSAE
from sae_lens.synthetic.architectures import architectures, config_for, is_steered, kind_of
from sae_lens.synthetic.data import SyntheticConfig, SyntheticData
from sae_lens.synthetic.metrics import Recovery, recovery_of
from sae_lens.synthetic.views import view_of
from sae_lens.training.features import TargetL0, TrainingFeatures
from sae_lens.training.trainer import SAETrainer

_TEST_SAMPLES = 4096
_TEST_SEED = 1_000_003


@dataclass(frozen=True)
class BenchmarkConfig:
    """A comparison.

    Attributes:
        data: what the activations are made of.
        architectures: which to train.
        l0s: at which sparsities.
        d_sae: latents; as many as true features when None.
        n_steps: of training.
        batch_size: samples per step.
        lr: learning rate.
        seed: of the first weights.
    """

    data: SyntheticConfig = field(default_factory=SyntheticConfig)
    architectures: tuple[str, ...] = field(default_factory=architectures)
    l0s: tuple[float, ...] = (3.0, 6.0, 9.0)
    d_sae: int | None = None
    n_steps: int = 4000
    batch_size: int = 256
    lr: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        known = architectures()
        unknown = [name for name in self.architectures if name not in known]
        if unknown or not self.architectures:
            raise ValueError(
                f"Unknown architectures {unknown}; the benchmark knows {', '.join(known)}."
            )
        for name in ("n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}; it must be finite and not negative.")
        if not self.l0s or any(not 1 <= l0 <= self.n_latents for l0 in self.l0s):
            raise ValueError(
                f"l0s is {self.l0s}; each must lie between 1 and d_sae={self.n_latents}."
            )
        for architecture in self.architectures:  # what cannot be built is said before training
            for l0 in self.l0s:
                try:
                    config_for(architecture, l0, self.data.d_in, self.n_latents)
                except ValueError as error:
                    raise ValueError(f"{architecture} at an L0 of {l0:g}: {error}") from error

    @property
    def n_latents(self) -> int:
        """`d_sae`, or as many as true features."""
        return self.data.n_features if self.d_sae is None else self.d_sae


@dataclass
class BenchmarkResult:
    """One SAE of a comparison."""

    architecture: str
    wanted_l0: float
    recovery: Recovery

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def train_on_synthetic(
    architecture: str, wanted_l0: float, data: SyntheticData, cfg: BenchmarkConfig
) -> TrainingSAE:
    """Train one SAE."""
    torch.manual_seed(cfg.seed)
    sae = TrainingSAE(config_for(architecture, wanted_l0, data.cfg.d_in, cfg.n_latents))
    features = None
    if is_steered(architecture):
        # thresholds follow slowly: after too weak a penalty at first, features die on the way back
        start = 1.0 if "jumprelu" in architecture else 0.1
        features = TrainingFeatures(target_l0=TargetL0(wanted_l0, start=start))
    trainer_cfg = SAETrainerConfig(
        total_training_samples=cfg.n_steps * cfg.batch_size,
        train_batch_size_samples=cfg.batch_size,
        lr=cfg.lr,
        lr_warm_up_steps=min(100, cfg.n_steps // 10),
        lr_decay_steps=cfg.n_steps // 5,
        dead_feature_window=max(20, cfg.n_steps // 20),
        features=None if features is None else features.to_dict(),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer_cfg.verbose = False  # type: ignore[attr-defined]  # no progress bar for each of many
    view = view_of(kind_of(architecture), data)
    SAETrainer(trainer_cfg, sae, view.batches(cfg.batch_size)).fit()
    return sae


def run_benchmark(
    cfg: BenchmarkConfig, report: Callable[[BenchmarkResult], None] | None = None
) -> list[BenchmarkResult]:
    """Train every architecture at every sparsity and measure what it found.

    The SAE that is measured is the one that would be saved for inference.

    Args:
        cfg: the config.
        report: called with each result as soon as it is known.
    """
    data = SyntheticData(cfg.data)
    results = []
    random_state = torch.get_rng_state()
    try:
        for architecture in cfg.architectures:
            view = view_of(kind_of(architecture), data)
            generator = torch.Generator().manual_seed(_TEST_SEED + cfg.data.seed)
            sample = view.sample(_TEST_SAMPLES, generator)
            for l0 in cfg.l0s:
                trained = train_on_synthetic(architecture, l0, data, cfg)
                sae = SAE.from_components(*trained.inference_components()).eval()
                found = recovery_of(sae, view.directions, sample)
                results.append(BenchmarkResult(architecture, l0, found))
                if report is not None:
                    report(results[-1])
    finally:
        torch.set_rng_state(random_state)
    return results
