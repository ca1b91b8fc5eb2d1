"""What TransformerLens keeps elsewhere, or computes otherwise, from version to version.

This is the only module that asks which one is installed.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import transformer_lens

__all__ = ["LAYER_NORM_HOOK_IS_BEFORE_WEIGHT", "HookedRootModule", "lm_cross_entropy_loss"]

_IS_3 = int(version("transformer-lens").split(".")[0]) >= 3

if not TYPE_CHECKING and hasattr(transformer_lens, "HookedRootModule"):
    from transformer_lens import HookedRootModule  # the last 3.x warn about the old place
else:
    from transformer_lens.hook_points import HookedRootModule
if not TYPE_CHECKING and _IS_3:
    from transformer_lens.utilities import lm_cross_entropy_loss
else:
    from transformer_lens.utils import lm_cross_entropy_loss

# Where `hook_normalized` of a LayerNorm with weights lies: in 2.x it sees them, in 3.x it does not.
LAYER_NORM_HOOK_IS_BEFORE_WEIGHT = _IS_3
