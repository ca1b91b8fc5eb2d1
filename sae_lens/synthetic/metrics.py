"""How well an SAE has found known features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.synthetic.data import SyntheticSample
from sae_lens.synthetic.views import ViewedSample


@dataclass
class Recovery:
    """What was found.

    Attributes:
        mcc: mean correlation coefficient: the cosine of true and matched direction, averaged over
            true features; those without a match count 0.
        uniqueness: distinct true features that living latents point to, over living latents.
        dead: share of latents that never fire.
        precision: of a matched latent's firing as a sign of its true feature, averaged.
        recall: share of a true feature's firing at which its matched latent fires, averaged.
        l0: latents active per sample.
        explained_variance: one minus squared error over variance.
    """

    mcc: float
    uniqueness: float
    dead: float
    precision: float
    recall: float
    l0: float
    explained_variance: float


def match_directions(
    cosines: Float[Tensor, "n_features d_sae"],
) -> Int[Tensor, " n_features"]:
    """One latent for each true feature, no latent twice, closest pairs first; -1 for none."""
    matched = torch.full((cosines.shape[0],), -1, dtype=torch.long)
    left = cosines.clone()
    for _ in range(min(cosines.shape)):
        best = int(left.argmax())
        feature, latent = divmod(best, left.shape[1])
        if not left[feature, latent] > 0:
            break
        matched[feature] = latent
        left[feature] = left[:, latent] = -torch.inf
    return matched


@torch.no_grad()
def recovery_of(
    sae: Any, directions: Float[Tensor, "n_features d_in"], sample: SyntheticSample | ViewedSample
) -> Recovery:
    """Compare an SAE with the truth.

    Args:
        sae: the SAE, in evaluation mode.
        directions: of the true features, where the SAE writes.
        sample: activations on which firing is compared.
    """
    x, truth = sample.activations, sample.features
    written = getattr(sample, "written", None)
    target = x if written is None else written
    acts = sae.encode(x)
    acts = acts.to_dense() if acts.is_sparse else acts
    recons = sae(x)  # not of the features alone: a skip connection writes too
    fires, should = acts != 0, truth > 0
    # Cross-layer transcoders keep their decoders by layers.
    rows = sae.decoder_rows() if hasattr(sae, "decoder_rows") else sae.W_dec
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    cosines = directions.to(rows) @ rows.T
    if bool((acts < 0).any()):
        cosines = cosines.abs()  # a feature with a sign stands for both directions
    matched = match_directions(cosines)
    found = matched >= 0
    index = found.nonzero().squeeze(1)
    latent = matched[found]
    alive = fires.any(dim=0)
    both = (fires[:, latent] & should[:, index]).sum(dim=0).float()
    precision = both / fires[:, latent].sum(dim=0).clamp(min=1)
    recall = both / should[:, index].sum(dim=0).clamp(min=1)
    n = len(directions)
    nearest = cosines[:, alive].argmax(dim=0)
    variance = (target - target.mean(dim=0)).pow(2).sum()
    return Recovery(
        mcc=(cosines[index, latent].sum() / n).item(),
        uniqueness=len(nearest.unique()) / max(int(alive.sum()), 1),
        dead=1 - alive.float().mean().item(),
        precision=(precision.sum() / n).item(),
        recall=(recall.sum() / n).item(),
        l0=fires.float().sum(dim=-1).mean().item(),
        explained_variance=(1 - (target - recons).pow(2).sum() / variance).item(),
    )
