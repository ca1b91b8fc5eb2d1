"""`ActiveFeatures`: the training features of a run at work, with what of them changes."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import warnings
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Optimizer

from sae_lens.saes.training_step import reported_features
from sae_lens.training.features import OptimizerChoice, TrainingFeatures
from sae_lens.training.loss_schedules import (
    checkpoint_steps,
    k_at_step,
    resolve_steps,
    value_between,
)
from sae_lens.training.statistics import count_active

logger = logging.getLogger(__name__)

# A reached L0 further than this from its target is worth a warning.
_TOLERATED_RATIO = 1.2


class ActiveFeatures:
    """The features of one run.

    Args:
        features: which, and how.
        sae: the SAE that is trained.
        total_steps: of the run.

    Raises:
        ValueError: when a feature does not go with the SAE.

    Attributes:
        coefficient_scale: what the sparsity coefficient is multiplied with.
        averages: the moving averages of the weights, by name.
    """

    def __init__(self, features: TrainingFeatures, sae: Any, total_steps: int) -> None:
        self.features = features
        self.total_steps = total_steps
        self._target_k = self._checked_k(sae)
        self._start_p = self._checked_p(sae)
        self._check_target_l0(sae)
        if features.resampling and "b_enc" not in sae._parameters:
            raise ValueError(
                f"Resampling needs an encoder with weights and bias; {sae.cfg.architecture!r} SAEs "
                "have none."
            )
        if features.norm_filter is not None and hasattr(sae.cfg, "extra_metadata"):
            sae.cfg.extra_metadata["norm_filter_multiple"] = features.norm_filter.multiple
        self.coefficient_scale = 1.0
        self._log_scale = 0.0
        self.mean_l0: float | None = None
        self.averages: dict[str, Tensor] = {}

    # -- before and after a step ------------------------------------------------------------------

    def before_step(self, sae: Any, step: int) -> None:
        """Set what depends on the step."""
        k, p = self.features.k_schedule, self.features.p_schedule
        if k is not None:
            sae.activation_fn.k = k_at_step(
                step,
                self._target_k,
                k.initial_k,
                resolve_steps(k.steps, self.total_steps),
                resolve_steps(k.cold_steps, self.total_steps),
                k.kind,
                k.factor,
            )
        if p is not None:
            first, steps = (resolve_steps(v, self.total_steps) for v in (p.first_step, p.steps))
            sae.cfg.lp_norm = value_between(step, self._start_p, p.end, steps, first)

    def keep(self, acts: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """The activations that are trained on."""
        chosen = self.features.norm_filter
        if chosen is None:
            return acts
        norms = acts.norm(dim=-1)
        return acts[norms <= chosen.multiple * norms.median()]

    def completes_update(self, step: int) -> bool:
        """Whether the optimiser moves in this step, or gradients only add up."""
        return (step + 1) % self.features.gradient_accumulation_steps == 0

    @torch.no_grad()
    def after_step(
        self, sae: Any, optimizer: Optimizer, output: Any, step: int, dead: Bool[Tensor, " d_sae"]
    ) -> None:
        """Steer, resample and average."""
        self._steer(output)
        resampling = self.features.resampling
        if (
            resampling is not None
            and (step + 1) % resampling.every == 0
            and step < resolve_steps(resampling.until, self.total_steps)
        ):
            resample_dead_features(sae, optimizer, output, dead, resampling.encoder_norm)
        average = self.features.weight_average
        if average is not None:
            for name, value in sae.named_parameters():
                if name not in self.averages:
                    self.averages[name] = value.detach().clone()
                self.averages[name].lerp_(value.detach(), 1 - average.decay)

    @torch.no_grad()
    def finish(self, sae: Any) -> None:
        """Give the SAE the averaged weights; say when the target L0 was not reached."""
        parameters = dict(sae.named_parameters())
        for name, value in self.averages.items():
            parameters[name].copy_(value)
        target = self.features.target_l0
        if target is not None and self.mean_l0 is not None:
            ratio = max(self.mean_l0, 1e-9) / target.target
            if not 1 / _TOLERATED_RATIO <= ratio <= _TOLERATED_RATIO:
                logger.warning(
                    "The target L0 of %s was not reached: it ended at %.1f, with the sparsity "
                    "coefficient at %.3g times its configured value. Train for longer, or start "
                    "from another coefficient.",
                    target.target,
                    self.mean_l0,
                    self.coefficient_scale,
                )

    def metrics(self) -> dict[str, float]:
        """What is worth logging."""
        if self.features.target_l0 is None:
            return {}
        return {"details/coefficient_scale": self.coefficient_scale}

    def _steer(self, output: Any) -> None:
        target = self.features.target_l0
        if target is None:
            return
        features = reported_features(output)
        l0 = count_active(features).item() / max(features.shape[:-1].numel(), 1)
        past = l0 if self.mean_l0 is None else self.mean_l0
        self.mean_l0 = target.smoothing * past + (1 - target.smoothing) * l0
        error = math.log(max(self.mean_l0, 1e-3) / target.target)
        error = max(-1.0, min(1.0, error))
        self._log_scale += target.rate * error
        self.coefficient_scale = math.exp(self._log_scale + target.damping * error)

    # -- what goes with the SAE -------------------------------------------------------------------

    def _checked_k(self, sae: Any) -> int:
        schedule = self.features.k_schedule
        if schedule is None:
            return 0
        k = getattr(sae.activation_fn, "k", None)
        if k is None:
            raise ValueError(
                f"k_schedule is for SAEs that select k features; {sae.cfg.architecture!r} does not."
            )
        k = int(sae.cfg.activation_fn_kwargs["k"])
        if not k <= schedule.initial_k <= sae.cfg.d_sae:
            raise ValueError(
                f"k_schedule.initial_k is {schedule.initial_k}; it must lie between the SAE's k, "
                f"{k}, and its number of features, {sae.cfg.d_sae}."
            )
        return k

    def _checked_p(self, sae: Any) -> float:
        if self.features.p_schedule is None:
            return 1.0
        if sae.cfg.architecture != "standard":
            raise ValueError(
                f"p_schedule is for standard SAEs; {sae.cfg.architecture!r} has no sparsity norm."
            )
        return float(sae.cfg.lp_norm)

    def _check_target_l0(self, sae: Any) -> None:
        target = self.features.target_l0
        if target is None:
            return
        if not sae.get_coefficients():
            raise ValueError(
                f"target_l0 steers a sparsity coefficient; {sae.cfg.architecture!r} SAEs have "
                "none. Their k is their L0."
            )
        if target.target > sae.cfg.d_sae:
            raise ValueError(
                f"target_l0.target is {target.target}; there are only {sae.cfg.d_sae} features."
            )

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where p started, the scale, the smoothed L0 and the averages."""
        return {
            "start_p": self._start_p,
            "log_scale": self._log_scale,
            "coefficient_scale": self.coefficient_scale,
            "mean_l0": self.mean_l0,
            "averages": dict(self.averages),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._start_p, self._log_scale = state["start_p"], state["log_scale"]
        self.coefficient_scale = state["coefficient_scale"]
        self.mean_l0 = state["mean_l0"]
        self.averages = {name: value.clone() for name, value in state["averages"].items()}


def checkpoint_tokens(
    features: TrainingFeatures, total_tokens: int, batch_size: int, n_checkpoints: int
) -> list[int] | None:
    """Numbers of tokens after which checkpoints are due, when spaced by logarithm; else None."""
    if features.checkpoint_spacing == "linear":
        return None
    steps = checkpoint_steps(total_tokens // batch_size, n_checkpoints, "log")
    # a checkpoint is written once its threshold has been passed
    return [step * batch_size - 1 for step in steps]


def chosen_optimizer(
    choice: OptimizerChoice, parameters: Any, lr: float, betas: tuple[float, float]
) -> Optimizer:
    """The optimiser that a config names.

    Raises:
        ValueError: when it cannot be imported, or is no optimiser.
    """
    module, _, name = choice.path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"The optimiser {choice.path!r} cannot be imported: {error}. Give the path of a class, "
            "as in 'torch.optim.AdamW'."
        ) from error
    if not (inspect.isclass(found) and issubclass(found, Optimizer)):
        raise ValueError(f"{choice.path!r} is no torch optimiser.")
    options: dict[str, Any] = {"lr": lr, **(choice.options or {})}
    if "betas" in inspect.signature(found).parameters:
        options.setdefault("betas", tuple(float(beta) for beta in betas))
    return found(list(parameters), **options)


def step_schedule(scheduler: Any) -> None:
    """Move a schedule of the learning rate on, also before the optimiser's first step."""
    with warnings.catch_warnings():
        # while the first gradients accumulate, torch misses the optimiser's step
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        scheduler.step()


@torch.no_grad()
def resample_dead_features(
    sae: Any,
    optimizer: Optimizer,
    output: Any,
    dead: Bool[Tensor, " d_sae"],
    encoder_norm: float,
) -> int:
    """Start dead features anew at badly reconstructed activations; how many there were."""
    index = dead.nonzero().squeeze(1)
    if not len(index):
        return 0
    residual = (output.sae_in.to(sae.dtype) - output.sae_out).detach()
    squared = residual.pow(2).sum(dim=-1)
    if not bool(squared.sum() > 0):
        return 0
    drawn = torch.multinomial(squared.float().pow(2), len(index), replacement=True)
    directions = residual[drawn] / residual[drawn].norm(dim=-1, keepdim=True).clamp(min=1e-12)
    alive = ~dead
    row_norm = sae.W_dec[alive].norm(dim=-1).mean() if bool(alive.any()) else 1.0
    column_norm = sae.W_enc[:, alive].norm(dim=0).mean() if bool(alive.any()) else 1.0
    sae.W_dec[index] = directions * row_norm
    sae.W_enc[:, index] = (directions * column_norm * encoder_norm).T
    sae.b_enc[index] = 0
    for parameter, axis in ((sae.W_dec, 0), (sae.W_enc, 1), (sae.b_enc, 0)):
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.index_fill_(axis, index, 0)
    logger.info("Resampled %d dead features.", len(index))
    return len(index)
