"""Which numbers the fields of a config may have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def refuse_below(cfg: Any, least: Mapping[str, float]) -> None:
    """`ValueError` for a field that is below its least value."""
    for name, minimum in least.items():
        if not getattr(cfg, name) >= minimum:
            raise ValueError(f"{name} is {getattr(cfg, name)}; it must be at least {minimum}.")


def refuse_negative(cfg: Any, names: Iterable[str]) -> None:
    """`ValueError` for a field that is negative, infinite, or no number."""
    for name in names:
        value = getattr(cfg, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a finite number of at least 0.")


def refuse_bad_optimization(cfg: Any) -> None:
    """`ValueError` for a learning rate or a decay of moments with which nothing can be trained."""
    refuse_negative(cfg, ("lr",))
    restarts = cfg.lr_scheduler_name == "cosineannealingwarmrestarts"
    refuse_below(cfg, {"n_restart_cycles": int(restarts)})
    for name in ("adam_beta1", "adam_beta2"):
        value = getattr(cfg, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; it must lie in [0, 1).")
