"""The two ways to make a trainer, brought to one set of parts."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sae_lens.saes.idle_settings import idle_settings
from sae_lens.saes.training import TrainingSAE
from sae_lens.training.evaluation import Evaluator, InModelEvaluator
from sae_lens.training.features import TrainingFeatures
from sae_lens.training.loggers import MetricLogger
from sae_lens.training.loss_schedules import steps_of_setting
from sae_lens.training.optim import L1Scheduler, apply_group_factors, get_lr_scheduler
from sae_lens.training.sources import (
    ActivationSource,
    IteratorSource,
    SourceSettings,
    StoreSource,
)

_log = logging.getLogger(__name__)


class TrainerParts(NamedTuple):
    """What a trainer is made of, whichever way its arguments were given."""

    model: Any
    sae: TrainingSAE
    data: Any
    source: ActivationSource
    save_checkpoint_fn: Callable[..., None] | None
    cfg: Any
    evaluator: Evaluator | None
    logger: MetricLogger | None
    has_runner: bool
    """whether checkpoints are entirely up to `save_checkpoint_fn`"""


def trainer_parts(*args: Any, **kwargs: Any) -> TrainerParts:
    """Parts from the arguments of either form, told apart by the kind of config or by keyword."""
    cfg = args[0] if args else kwargs.get("cfg")
    # the first argument may also be a model, or a stand-in for one that has any attribute
    n_samples = getattr(cfg, "total_training_samples", None)
    is_second_form = isinstance(n_samples, (int, float)) or "data_provider" in kwargs
    parts = (_parts_on_iterator if is_second_form else _parts_on_model)(*args, **kwargs)
    if getattr(parts.sae, "dtype", None) == torch.float16:
        _log.warning(
            "dtype is float16, in which Adam's second moments underflow to 0 and weights become "
            "NaN; train in float32 or bfloat16 and convert the result."
        )
    return parts


def _parts_on_model(
    model: Any,
    sae: TrainingSAE,
    activation_store: Any,
    save_checkpoint_fn: Callable[..., None],
    cfg: Any,
    *,
    evaluator: Evaluator | None = None,
    logger: MetricLogger | None = None,
    source: ActivationSource | None = None,
) -> TrainerParts:
    if evaluator is None:
        evaluator = InModelEvaluator(model, cfg)
    if source is None:
        source = StoreSource(activation_store, source_settings(cfg, activation_store))
    return TrainerParts(
        model, sae, activation_store, source, save_checkpoint_fn, cfg,
        evaluator, logger, has_runner=True,
    )  # fmt: skip


def _parts_on_iterator(
    cfg: Any,
    sae: TrainingSAE,
    data_provider: Any,
    evaluator: Evaluator | None = None,
    save_checkpoint_fn: Callable[..., None] | None = None,
    *,
    logger: MetricLogger | None = None,
) -> TrainerParts:
    if hasattr(cfg, "to_sae_trainer_config"):
        cfg = cfg.to_sae_trainer_config()
    for name, value in idle_settings(sae.cfg).items():
        _log.warning(
            "%s=%r has no effect on the %s architecture.", name, value, sae.cfg.architecture
        )
    source: ActivationSource
    if hasattr(data_provider, "next_batch"):
        source = StoreSource(data_provider, source_settings(cfg, data_provider, sae))
    else:
        source = IteratorSource(data_provider, source_settings(cfg, data_provider, sae))
    return TrainerParts(
        None, sae, data_provider, source, save_checkpoint_fn, cfg, evaluator, logger,
        has_runner=False,
    )  # fmt: skip


def source_settings(cfg: Any, data: Any, sae: Any = None) -> SourceSettings:
    """What a run's config asks to be done to activations.

    Args:
        cfg: the run's config.
        data: a store of several activations side by side says their `widths`, and `n_read`, how
            many of them are the SAE's input, where that is not one.
        sae: says how activations are normalised, and their widths, where the others do not.
    """
    features = TrainingFeatures.of(getattr(cfg, "features", None))
    of_sae = "none" if sae is None else sae.cfg.normalize_activations
    return SourceSettings(
        normalize_activations=getattr(cfg, "normalize_activations", of_sae),
        norm_multiple=None if features.norm_filter is None else features.norm_filter.multiple,
        shrinkage=features.whitening_shrinkage,
        n_batches=getattr(cfg, "n_batches_for_norm_estimate", 1000),
        widths=getattr(data, "widths", getattr(sae, "activation_widths", None)),
        n_read=getattr(data, "n_read", getattr(sae, "n_hooks", 1)),
        device=getattr(cfg, "device", None) if sae is None else sae.device,
    )


def may_take_step_input(sae: Any) -> bool:
    """Whether the training pass takes a `TrainStepInput`; one of an older subclass does not."""
    parameters = inspect.signature(sae.training_forward_pass).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes_any or "step_input" in parameters


def make_coefficient_schedulers(sae: Any, cfg: Any) -> dict[str, L1Scheduler]:
    """A schedule for every sparsity coefficient of the SAE's loss, by name.

    The flat form has exactly one, of the run's config where that has it. In the 6.x form they come
    from the SAE's config; the topk family has none.
    """
    if sae.form == "v5" and hasattr(cfg, "l1_coefficient"):
        coefficients = {"l1": (cfg.l1_coefficient, cfg.l1_warm_up_steps)}
    else:
        coefficients = {
            name: (coefficient.value, coefficient.warm_up_steps)
            for name, coefficient in sae.get_coefficients().items()
        }
    return {
        name: _coefficient_scheduler(name, value, warm_up, cfg.total_training_steps)
        for name, (value, warm_up) in coefficients.items()
    }


def _coefficient_scheduler(
    name: str, value: float, warm_up: int | float, total_steps: int
) -> L1Scheduler:
    warm_up = steps_of_setting(f"{name}_warm_up_steps", warm_up, total_steps)
    if warm_up > total_steps > 0:
        _log.warning(
            "%s_warm_up_steps=%s is longer than the training, %d steps: the sparsity coefficient "
            "only rises to %.0f%% of its value.",
            name,
            warm_up,
            total_steps,
            100 * total_steps / warm_up,
        )
    return L1Scheduler(warm_up, total_steps, value)


def make_lr_scheduler(optimizer: torch.optim.Optimizer, cfg: Any) -> LRScheduler:
    """The schedule of the learning rate that a run's config asks for, at its start."""
    chosen = TrainingFeatures.of(getattr(cfg, "features", None)).lr_schedule
    if chosen is not None:
        factor = chosen.factor(cfg.total_training_steps)
        return LambdaLR(optimizer, [factor] * len(optimizer.param_groups))
    steps = cfg.total_training_steps
    return get_lr_scheduler(
        cfg.lr_scheduler_name,
        optimizer=optimizer,
        training_steps=steps,
        lr=cfg.lr,
        warm_up_steps=int(steps_of_setting("lr_warm_up_steps", cfg.lr_warm_up_steps, steps)),
        decay_steps=int(steps_of_setting("lr_decay_steps", cfg.lr_decay_steps, steps)),
        lr_end=cfg.lr_end,
        num_cycles=cfg.n_restart_cycles,
    )


def remade_lr_scheduler(
    optimizer: torch.optim.Optimizer, cfg: Any, n_training_steps: int
) -> LRScheduler:
    """The config's schedule as it stands after some steps; sets the optimiser's learning rate.

    The rates are walked through on an optimiser without weights: many depend on the one before.
    """
    rates = [cfg.lr * group.get("lr_factor", 1.0) for group in optimizer.param_groups]
    stand_in = torch.optim.Adam(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    )
    walked = make_lr_scheduler(stand_in, cfg)
    stand_in.step()  # torch warns when a schedule moves before its optimiser does
    for _ in range(n_training_steps):
        walked.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        group.pop("initial_lr", None)
    scheduler = make_lr_scheduler(optimizer, cfg)
    scheduler.load_state_dict(walked.state_dict())
    for group, walked_group in zip(optimizer.param_groups, stand_in.param_groups, strict=True):
        group["lr"] = walked_group["lr"]
    apply_group_factors(optimizer)
    return scheduler
