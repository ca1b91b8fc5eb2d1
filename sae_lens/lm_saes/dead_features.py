"""How many tokens ago each feature was active."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens.training.statistics import count_firing


@torch.no_grad()
def tokens_of_silence(
    before: Int[Tensor, " d_sae"],
    feature_acts: Tensor,
    mask: Tensor | None,
    specs: tuple[str, ...],
) -> Int[Tensor, " d_sae"]:
    """The counters after a batch: 0 where a feature was active, else more by the batch's tokens.

    Args:
        before: the counters.
        feature_acts: dense or sparse, with the dimensions `specs`.
        mask: 1 for tokens that count; None for all.
        specs: names of the dimensions; "sae" is that of features.

    Raises:
        ValueError: when `specs` does not fit.
    """
    if len(specs) != feature_acts.ndim or "sae" not in specs:
        raise ValueError(
            f"specs {specs} must name each of the {feature_acts.ndim} dimensions, one of them "
            "'sae'."
        )
    if feature_acts.is_sparse and specs[-1] == "sae" and mask is None:
        n_tokens = feature_acts.shape[:-1].numel()
        return (before + n_tokens).masked_fill(count_firing(feature_acts) > 0, 0)
    acts = feature_acts.to_dense() if feature_acts.is_sparse else feature_acts
    acts = acts.movedim(specs.index("sae"), -1)
    if mask is None:
        n_tokens = acts.shape[:-1].numel()
    else:
        acts = acts * mask.unsqueeze(-1).to(acts.dtype)
        n_tokens = int(mask.sum())
    activated = acts.reshape(-1, acts.shape[-1]).sum(dim=0) > 0
    return (before + n_tokens).masked_fill(activated, 0)
