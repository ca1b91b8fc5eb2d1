"""What a `Trainer` tells of its steps: logged values and evaluations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from sae_lens.lm_saes.adapter import SAEAdapter
from sae_lens.lm_saes.config import TrainerConfig
from sae_lens.saes import TrainingSAE

logger = logging.getLogger(__name__)


class TrainerReports:
    """The part of a trainer that looks at training without changing it."""

    cfg: TrainerConfig
    cur_step: int
    cur_tokens: int
    metrics: list[Any]
    optimizer: Optimizer | None
    wandb_logger: Any
    current_l1_coefficient: Any

    def _log_if_due(self, adapter: SAEAdapter) -> None:
        step = self.cur_step + 1
        if self.cfg.skip_metrics_calculation or step % self.cfg.log_frequency:
            return
        values: dict[str, Any] = {}
        for metric in self.metrics:
            values |= metric.compute(adapter)
        assert self.optimizer is not None
        values |= {
            "details/current_learning_rate": self.optimizer.param_groups[0]["lr"],
            "details/n_training_tokens": self.cur_tokens,
            "details/l1_coefficient": self.current_l1_coefficient,
            "details/lp_coefficient": self.cfg.lp_coefficient,
            "details/auxk_coefficient": self.cfg.auxk_coefficient,
        }
        values = {name: value for name, value in values.items() if value is not None}
        if self.wandb_logger is not None:
            self.wandb_logger.log(values, step=step)
        else:
            logger.info("step %d: %s", step, values)

    def _evaluate_if_due(self, sae: TrainingSAE, eval_fn: Callable[..., Any] | None) -> None:
        if eval_fn is not None and (self.cur_step + 1) % self.cfg.eval_frequency == 0:
            sae.eval()
            with torch.no_grad():
                eval_fn(sae)
            sae.train()
