"""Clipping by a norm that does not grow with the number of weights."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def clip_by_norm_per_entry_(gradients: list[Tensor], limit: float) -> Tensor:
    """Scale gradients down to `limit`, in place, if their norm is larger; the norm before that.

    The norm is the L2 norm over the root of the number of non-zero entries, so that a limit means
    the same for any width and sparsity. A limit of 0 clips nothing.
    """
    n_nonzero = torch.stack([torch.count_nonzero(g) for g in gradients]).sum().clamp(min=1)
    norm = torch.stack([g.float().norm() for g in gradients]).norm() / n_nonzero.sqrt()
    if limit > 0 and norm > limit:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).item())
    return norm
