"""The hook points of an SAE: the one file here that knows TransformerLens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn
from transformer_lens.hook_points import HookPoint

from sae_lens.transformer_lens_versions import HookedRootModule

if TYPE_CHECKING:
    from sae_lens.saes.base import SAE

__all__ = ["SAE_HOOK_NAMES", "HookPoint", "HookedRootModule", "has_active_hooks", "hooks_disabled"]

SAE_HOOK_NAMES = (
    "hook_sae_input",
    "hook_sae_acts_pre",
    "hook_sae_acts_post",
    "hook_sae_output",
    "hook_sae_recons",
    "hook_sae_error",
)


def add_hook_points(sae: nn.Module) -> None:
    """Give `sae` its six hook points, in the order in which `hook_dict` lists them."""
    for name in SAE_HOOK_NAMES:
        setattr(sae, name, HookPoint())


def has_active_hooks(sae: nn.Module) -> bool:
    """Whether anything listens at, or intervenes on, one of the SAE's hook points."""
    for name in SAE_HOOK_NAMES:
        point = getattr(sae, name)
        if point._forward_hooks or point._forward_pre_hooks:
            return True
    return False


@contextmanager
def hooks_disabled(sae: SAE) -> Iterator[None]:
    """Swap the hook points for pass-throughs; they come back on exit, after an exception too."""
    points = {name: getattr(sae, name) for name in SAE_HOOK_NAMES}
    try:
        for name in points:
            setattr(sae, name, nn.Identity())
        yield
    finally:
        for name, point in points.items():
            setattr(sae, name, point)
