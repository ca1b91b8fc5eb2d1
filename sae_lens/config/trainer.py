"""Training from any source of activations, without a language model (the 6.x spelling)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sae_lens.config.feature_validation import refuse_bad_steps, refuse_contradictory_features
from sae_lens.config.logging import LoggingConfig
from sae_lens.config.numbers import refuse_bad_optimization, refuse_below
from sae_lens.kernels.dispatch import check_sparse_kernels
from sae_lens.training.features import features_as_dict


@dataclass
class SAETrainerConfig:
    """How an SAE is trained on a stream of activations.

    The sparsity coefficient and its warm-up come from the SAE's own config. Fields that are not
    listed mean what they mean in `LanguageModelSAERunnerConfig`.

    Attributes:
        total_training_samples: number of activations to train on.
        train_batch_size_samples: activations per step.
        checkpoint_path: folder for checkpoints; None writes nothing.
        save_final_checkpoint: whether the trained SAE is written there as well.
        logger: what is logged, and where.
        n_batches_for_norm_estimate: batches from which the mean norm of the activations is
            estimated, where the SAE's config asks for scaling.
    """

    total_training_samples: int
    train_batch_size_samples: int
    lr: float = 3e-4
    lr_end: float | None = None
    lr_scheduler_name: str = "constant"
    lr_warm_up_steps: int | float = 0
    lr_decay_steps: int | float = 0
    n_restart_cycles: int = 1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    device: str = "cpu"
    autocast: bool = False
    dead_feature_window: int = 1000
    feature_sampling_window: int = 2000
    n_checkpoints: int = 0
    checkpoint_path: str | None = None
    save_final_checkpoint: bool = False
    logger: LoggingConfig = field(default_factory=lambda: LoggingConfig(log_to_wandb=False))
    n_batches_for_norm_estimate: int = 1000
    sparse_kernels: str = "auto"
    features: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_sparse_kernels(self.sparse_kernels)
        self.features = features_as_dict(self.features)
        least = {
            "total_training_samples": 1, "train_batch_size_samples": 1,
            "feature_sampling_window": 1, "n_batches_for_norm_estimate": 1,
            "dead_feature_window": 0, "n_checkpoints": 0,
        }  # fmt: skip
        refuse_below(self, least)
        refuse_bad_optimization(self)
        if isinstance(self.logger, dict):
            self.logger = LoggingConfig(**self.logger)
        if self.lr_end is None:
            self.lr_end = self.lr / 10
        refuse_bad_steps(self)
        refuse_contradictory_features(self)
        self.device = str(self.device)

    # The trainer reads the same names from every config.

    @property
    def total_training_tokens(self) -> int:
        """The same as `total_training_samples`."""
        return self.total_training_samples

    @property
    def train_batch_size_tokens(self) -> int:
        """The same as `train_batch_size_samples`."""
        return self.train_batch_size_samples

    @property
    def total_training_steps(self) -> int:
        """Whole batches in the total."""
        return self.total_training_samples // self.train_batch_size_samples

    @property
    def log_to_wandb(self) -> bool:
        """Whether the run is logged to W&B."""
        return self.logger.log_to_wandb

    @property
    def wandb_log_frequency(self) -> int:
        """Steps between two logged steps."""
        return self.logger.wandb_log_frequency

    @property
    def eval_every_n_wandb_logs(self) -> int:
        """Logged steps between two evaluations."""
        return self.logger.eval_every_n_wandb_logs

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of all fields."""
        return asdict(self)
