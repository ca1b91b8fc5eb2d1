"""Whitening folded into an SAE: trained on whitened activations, it works on raw ones.

With z = (x - m) M for what is read and y = (z' M_out^-1) + m_out for what is written (the same map,
unless input and output are different activations):

    W_enc -> M W_enc        W_dec -> W_dec M_out^-1        b_dec -> b_dec M_out^-1 + m_out
    biases of pre-activations -> less m M W_enc, unless b_dec, which now holds m, is subtracted
    W_skip^T -> M W_skip^T M_out^-1, and b_dec less m times that

All of it is linear, so features stay the same to rounding, whatever is done to pre-activations
(ReLU, thresholds, gates, selections). Selections by pre-activation times decoder norm mean the norm
in the whitened space; they are folded into the encoder first. With several hooks, each has a map
for its own blocks of the matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sae_lens.whitening import Whitening

WHITENING = "whitening"

_BIASES = ("b_enc", "b_gate", "b_mag")


def refuse_unfolded(sae: Any) -> None:
    """`ValueError` for an SAE that works on whitened activations: a file would lack the map."""
    if sae.cfg.normalize_activations == WHITENING:
        raise ValueError(
            "This SAE works on whitened activations, and the map is not part of it. A run's "
            "checkpoints have it folded in, as has the SAE that the run returns; in between, use "
            "fold_whitening on a copy."
        )


@torch.no_grad()
def fold_whitening(sae: Any, *maps: Whitening) -> None:
    """Make an SAE trained on whitened activations work on raw ones, in place.

    Afterwards `sae(x)` is the old one's output for whitened x, brought back by the maps of what is
    written, and the config says "none". With the inverted maps it is undone, but for decoder norms
    that selections went by: these stay in the encoder.

    Args:
        sae: any SAE with a decoder of its own.
        maps: one for each activation in a training row: those that are read, then those that are
            written, where these are others.

    Raises:
        ValueError: for an architecture of another kind, or another number of maps.
    """
    weights: dict[str, nn.Parameter] = sae._parameters
    if not weights.keys() >= {"W_dec", "b_dec"}:
        raise ValueError(
            f"A {sae.cfg.architecture!r} SAE has not the weights W_dec and b_dec, into which "
            "whitening is folded."
        )
    n_read = getattr(sae, "n_hooks", 1)
    reads = [part.to(sae.device) for part in maps[:n_read]]
    writes = [part.to(sae.device) for part in maps[n_read:]] or reads
    if len(reads) != n_read:
        raise ValueError(f"The SAE reads {n_read} activations; {len(maps)} maps were given.")
    if getattr(sae, "rescales_acts", False):
        sae.fold_W_dec_norm()
        sae.cfg.rescale_acts_by_decoder_norm = False
    mean_pre = sae.map_encoder_(reads)
    if not sae.cfg.apply_b_dec_to_input:
        _shift_pre_activations(weights, mean_pre)
    sae.map_decoder_(writes)
    if "W_skip" in weights:
        skip = reads[0].matrix @ weights["W_skip"].float().T @ writes[0].inverse
        weights["b_dec"].sub_(reads[0].mean @ skip)
        weights["W_skip"].copy_(skip.T)
    sae.cfg.normalize_activations = "none"


def _shift_pre_activations(weights: dict[str, nn.Parameter], mean_pre: Tensor) -> None:
    """Take the mean's part out of the biases, gates' and magnitudes' among them.

    Raises:
        ValueError: when there are none.
    """
    if not weights.keys() & set(_BIASES):
        raise ValueError(
            "This SAE has no biases of pre-activations to hold the mean of raw activations; set "
            "apply_b_dec_to_input=True."
        )
    for name in ("b_enc", "b_gate"):
        if name in weights:
            weights[name].sub_(mean_pre)
    if "b_mag" in weights:
        weights["b_mag"].sub_(mean_pre * weights["r_mag"].exp())
