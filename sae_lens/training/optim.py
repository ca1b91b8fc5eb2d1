"""The optimiser, and the flat config's schedules of learning rate and sparsity coefficient."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

logger = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0

# Names of the parameters that are thresholds of features, or their logarithms.
THRESHOLDS = ("threshold", "log_threshold")


def make_optimizer(parameters: Iterable[Any], lr: float, beta1: float, beta2: float) -> Adam:
    """Adam over `parameters` or groups of them; in one fused pass where torch has it for them.

    The betas are made floats: newer torch refuses an integer beside a float.
    """
    parameters = list(parameters)
    options: dict[str, Any] = {"lr": lr, "betas": (float(beta1), float(beta2))}
    each = [q for p in parameters for q in (p["params"] if isinstance(p, dict) else [p])]
    fusable = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in each)
    if fusable:
        try:
            return Adam(parameters, fused=True, **options)
        except RuntimeError:  # this torch has no fused Adam for this device
            pass
    return Adam(parameters, **options)


@dataclass
class OptimizerChoice:
    """Another optimiser than Adam.

    Attributes:
        path: where to import it from, as in "torch.optim.AdamW" or "bitsandbytes.optim.Adam8bit".
        options: keyword arguments besides lr and betas.
    """

    path: str
    options: dict[str, Any] | None = None


def chosen_optimizer(
    choice: OptimizerChoice, parameters: Iterable[Any], lr: float, betas: tuple[float, float]
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
    if "closure" in _arguments_needed(found.step):
        raise ValueError(
            f"{choice.path!r} evaluates the loss several times in each step, which training here "
            "does once; choose an optimiser whose step() needs no closure."
        )
    options: dict[str, Any] = {"lr": lr, **(choice.options or {})}
    if "betas" in inspect.signature(found).parameters:
        options.setdefault("betas", tuple(float(beta) for beta in betas))
    else:
        logger.info("%s has no betas: adam_beta1 and adam_beta2 have no effect.", choice.path)
    try:
        return found(list(parameters), **options)
    except TypeError as error:
        raise ValueError(
            f"The optimiser {choice.path!r} does not take the options {choice.options}: {error}."
        ) from error


def _arguments_needed(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.default is parameter.empty}


def parameters_by_group(sae: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Trainable parameters by group: thresholds are "jumprelu", the rest "others"."""
    groups: dict[str, list[torch.nn.Parameter]] = {"others": [], "jumprelu": []}
    for name, parameter in sae.named_parameters():
        if parameter.requires_grad:
            groups["jumprelu" if name in THRESHOLDS else "others"].append(parameter)
    return groups


def check_has_thresholds(sae: Any) -> None:
    """`ValueError` unless some parameters are thresholds."""
    if not parameters_by_group(sae)["jumprelu"]:
        raise ValueError(
            "jumprelu_lr_factor is the learning rate of thresholds; "
            f"{sae.cfg.architecture!r} SAEs learn none. Leave it at 1."
        )


def groups_with_factors(sae: torch.nn.Module, lr: float, jumprelu_lr_factor: float) -> list[Any]:
    """What an optimiser is made of: all parameters, or two groups where thresholds have their rate.

    A group's `lr_factor` is what `apply_group_factors` keeps its rate at.
    """
    if jumprelu_lr_factor == 1.0:
        return list(sae.parameters())
    factors = {"others": 1.0, "jumprelu": jumprelu_lr_factor}
    return [
        {"params": parameters, "name": name, "lr": factors[name] * lr, "lr_factor": factors[name]}
        for name, parameters in parameters_by_group(sae).items()
    ]


def apply_group_factors(optimizer: Optimizer) -> None:
    """Set the learning rate of groups with a factor from that of the first group."""
    first = optimizer.param_groups[0]
    for group in optimizer.param_groups[1:]:
        if "lr_factor" in group:
            group["lr"] = first["lr"] * group["lr_factor"]


def step_schedule(scheduler: Any) -> None:
    """Move a schedule of the learning rate on, also before the optimiser's first step."""
    with warnings.catch_warnings():
        # while the first gradients accumulate, torch misses the optimiser's step
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        scheduler.step()
    apply_group_factors(scheduler.optimizer)


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> Tensor | None:
    """The L2 norm of all gradients together (scalar tensor), None when there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients)
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))


def clip_and_step(
    optimizer: Optimizer,
    parameters: Iterable[torch.nn.Parameter],
    norm: Tensor | None,
    skip: Tensor | None = None,
    max_norm: float | None = MAX_GRADIENT_NORM,
) -> None:
    """Scale the gradients down to a global norm of at most `max_norm`, and take an optimiser step.

    A fused optimiser divides by the norm while it reads the gradients, which saves a pass over
    them; the gradients themselves then stay unscaled. Nothing here waits for the device.

    Args:
        optimizer: the optimiser of `parameters`.
        parameters: the parameters whose gradients are clipped.
        norm: their `gradient_norm`.
        skip: scalar tensor; where it is true the step changes nothing. Optimisers that are not
            fused get gradients of zero instead.
        max_norm: the largest norm, 1 unless a run asks for another; None for no clipping.
    """
    if norm is None:
        optimizer.step()
        return
    # As in torch.nn.utils.clip_grad_norm_: the small constant keeps the quotient finite.
    divisor = ((norm + 1e-6) / (math.inf if max_norm is None else max_norm)).clamp(min=1.0)
    if is_fused(optimizer):
        # The two attributes are how torch's gradient scaler talks to optimisers that support it.
        optimizer.grad_scale = divisor.to(torch.float32)  # type: ignore[attr-defined]
        optimizer.found_inf = (  # type: ignore[attr-defined]
            torch.zeros_like(divisor) if skip is None else skip.to(torch.float32)
        )
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_div_(gradients, divisor)
    if skip is not None and skip.device.type != "cpu":
        for gradient in gradients:
            gradient.masked_fill_(skip, 0.0)
    optimizer.step()


def is_fused(optimizer: Optimizer) -> bool:
    """Whether the optimiser works in one fused pass, and so can scale and skip by itself."""
    return bool(optimizer.defaults.get("fused")) and bool(
        getattr(optimizer, "_step_supports_amp_scaling", False)
    )


def get_lr_scheduler(
    scheduler_name: str,
    optimizer: Optimizer,
    training_steps: int,
    lr: float,
    warm_up_steps: int,
    decay_steps: int,
    lr_end: float,
    num_cycles: int,
) -> SequentialLR:
    """Linear warm-up, a main schedule, and a linear decay to zero, one after the other.

    Args:
        scheduler_name: "constant", "cosineannealing" or "cosineannealingwarmrestarts".
        optimizer: the optimiser whose learning rate is set.
        training_steps: steps of all three phases together.
        lr: the learning rate after the warm-up.
        warm_up_steps: the rate starts at `lr / warm_up_steps` and is `lr` after one step less.
        decay_steps: the last steps, in which the rate goes from `lr_end` (`lr` for constant) to 0.
        lr_end: where the cosine schedules end.
        num_cycles: restarts of "cosineannealingwarmrestarts".

    Raises:
        ValueError: for an unknown name, a decay from zero, or phases longer than the training.
    """
    name = scheduler_name.lower()
    main_steps = training_steps - warm_up_steps - decay_steps
    main = _get_main_lr_scheduler(
        scheduler_name, optimizer, steps=main_steps, lr_end=lr_end, num_cycles=num_cycles
    )
    if main_steps < 0 and (decay_steps > 0 or name != "constant"):
        raise ValueError(
            f"lr_warm_up_steps={warm_up_steps} and lr_decay_steps={decay_steps} do not fit into "
            f"{training_steps} training steps; shorten them or train for longer."
        )
    schedulers: list[LRScheduler] = []
    milestones: list[int] = []
    if warm_up_steps > 0:
        schedulers.append(
            lr_scheduler.LinearLR(
                optimizer,
                start_factor=1 / warm_up_steps,
                end_factor=1.0,
                total_iters=warm_up_steps - 1,
            )
        )
        milestones.append(warm_up_steps)
    schedulers.append(main)
    if decay_steps > 0:
        if name != "constant" and lr_end == 0.0:
            raise ValueError(
                f"Cannot have decay_steps with lr_end=0.0: the {name} schedule has then nothing "
                f"left to decay from. Set lr_end above 0 or lr_decay_steps={decay_steps} to 0."
            )
        start = lr_end / lr if name != "constant" else 1.0
        schedulers.append(
            lr_scheduler.LinearLR(
                optimizer, start_factor=start, end_factor=0.0, total_iters=decay_steps
            )
        )
        milestones.append(training_steps - decay_steps)
    return SequentialLR(optimizer, schedulers=schedulers, milestones=milestones)


def _get_main_lr_scheduler(
    scheduler_name: str, optimizer: Optimizer, steps: int, lr_end: float, num_cycles: int
) -> LRScheduler:
    """The schedule between warm-up and decay. Raises `ValueError` for an unknown name."""
    name = scheduler_name.lower()
    if name == "constant":
        return lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if name == "cosineannealing":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1), eta_min=lr_end)
    if name == "cosineannealingwarmrestarts":
        return lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=max(steps // num_cycles, 1), eta_min=lr_end
        )
    raise ValueError(
        f"Unsupported scheduler: {scheduler_name}. Choose constant, cosineannealing or "
        "cosineannealingwarmrestarts, or one of the others as features.lr_schedule."
    )


class L1Scheduler:
    """Linear warm-up of a sparsity coefficient, then constant.

    With a warm-up the first training step uses 0; the final value is reached after
    `l1_warm_up_steps` calls of `step`.

    Raises:
        TypeError: when the final coefficient is not a number.
    """

    def __init__(
        self, l1_warm_up_steps: float, total_steps: int, final_l1_coefficient: float
    ) -> None:
        if isinstance(final_l1_coefficient, bool) or not isinstance(final_l1_coefficient, Real):
            raise TypeError(
                f"The sparsity coefficient must be a number, not {final_l1_coefficient!r} "
                f"of type {type(final_l1_coefficient).__name__}."
            )
        self.l1_warmup_steps = l1_warm_up_steps
        self.total_steps = total_steps
        self.final_l1_coefficient = final_l1_coefficient
        self.current_step = 0
        self.current_l1_coefficient = 0.0 if l1_warm_up_steps > 0 else final_l1_coefficient

    def __repr__(self) -> str:
        return (
            f"L1Scheduler(final_l1_coefficient={self.final_l1_coefficient}, "
            f"l1_warmup_steps={self.l1_warmup_steps}, total_steps={self.total_steps})"
        )

    def step(self) -> None:
        """Go on to the next training step."""
        if self.current_step < self.l1_warmup_steps:
            share = (1 + self.current_step) / self.l1_warmup_steps
            self.current_l1_coefficient = self.final_l1_coefficient * share
        else:
            self.current_l1_coefficient = self.final_l1_coefficient
        self.current_step += 1

    def state_dict(self) -> dict[str, Any]:
        """The five attributes by name."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the attributes from a `state_dict`."""
        for name, value in state_dict.items():
            setattr(self, name, value)
