"""The optimiser of a `Trainer` and the schedule of its learning rate."""

from __future__ import annotations

import logging

from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sae_lens.lm_saes.adapter import SAEAdapter
from sae_lens.lm_saes.config import TrainerConfig
from sae_lens.lm_saes.idle_settings import warn_of_long_phases
from sae_lens.training.loss_schedules import LearningRateFactor
from sae_lens.training.optim import OptimizerChoice, chosen_optimizer
from sae_lens.training.sparse_adam import SparseAdam

logger = logging.getLogger(__name__)


def make_optimizer(
    cfg: TrainerConfig, adapter: SAEAdapter, choice: OptimizerChoice | None = None
) -> Optimizer:
    """Adam, the sparse Adam, or the one chosen, over the parameter groups with their own rates."""
    groups = [
        {"params": parameters, "lr": cfg.learning_rate(name), "name": name}
        for name, parameters in adapter.parameter_groups().items()
        if parameters
    ]
    if choice is not None:
        return chosen_optimizer(choice, groups, cfg.learning_rate("others"), cfg.betas)
    if cfg.optimizer_class == "sparseadam":
        return SparseAdam(groups, betas=cfg.betas)
    return Adam(groups, betas=cfg.betas, foreach=cfg.optimizer_foreach)


def make_scheduler(
    cfg: TrainerConfig,
    optimizer: Optimizer,
    total_steps: int,
    warm_up_steps: int,
    cool_down_steps: int,
) -> LambdaLR:
    """The schedule that the config names."""
    if warm_up_steps >= total_steps and cfg.lr_scheduler_name == "constantwithwarmup":
        logger.warning(
            "lr_warm_up_steps=%d is not shorter than the training, %d steps: the learning rate "
            "will still be rising at the end.",
            warm_up_steps,
            total_steps,
        )
    if cfg.lr_scheduler_name == "constantwithwarmup":
        warn_of_long_phases(warm_up_steps, cool_down_steps, total_steps)
    factor = LearningRateFactor(
        cfg.lr_scheduler_name, total_steps, warm_up_steps, cool_down_steps, cfg.lr_end_ratio
    )
    return LambdaLR(optimizer, [factor] * len(optimizer.param_groups))
