"""Whitening folded into an SAE: trained on whitened activations, it works on raw ones.

With z = (x - m) M for what is read and y = (z' M_out^-1) + m_out for what is written (the same map,
unless input and output are different activations):

    W_enc -> M W_enc        W_dec -> W_dec M_out^-1        b_dec -> b_dec M_out^-1 + m_out
    biases of pre-activations -> less m M W_enc, unless b_dec, which now holds m, is subtracted
    W_skip^T -> M W_skip^T M_out^-1, and b_dec less m times that

All of it is linear, so features stay the same to rounding, whatever is done to pre-activations
(ReLU, thresholds, gates, selections). Selections by pre-activation times decoder norm mean the norm
in the whitened space; they are folded into the encoder first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sae_lens.whitening import Whitening

WHITENING = "whitening"

_MATCHING_PURSUIT = (
    "its encoder is the decoder's transpose, so the map cannot be folded into the two of them"
)
_SEVERAL_ACTIVATIONS = (
    "it reads or writes several activations, and whitening is defined for one at each end"
)
_LAYOUT = {"W_enc", "W_dec", "b_dec"}


def why_not_whitened(architecture: str) -> str | None:
    """Why an architecture cannot be trained on whitened activations; None when it can."""
    if architecture == "matching_pursuit":
        return _MATCHING_PURSUIT
    if "crosscoder" in architecture or "cross_layer" in architecture:
        return _SEVERAL_ACTIVATIONS
    return None


def refuse_whitening(architecture: str, normalize_activations: str | None) -> None:
    """`ValueError` when these two do not go together."""
    reason = why_not_whitened(architecture) if normalize_activations == WHITENING else None
    if reason is not None:
        raise ValueError(
            f"normalize_activations='whitening' does not go with a {architecture} SAE: {reason}. "
            "Use 'expected_average_only_in' or another normalisation."
        )


def refuse_unfolded(sae: Any) -> None:
    """`ValueError` for an SAE that works on whitened activations: a file would lack the map."""
    if sae.cfg.normalize_activations == WHITENING:
        raise ValueError(
            "This SAE works on whitened activations, and the map is not part of it. A run's "
            "checkpoints have it folded in, as has the SAE that the run returns; in between, use "
            "fold_whitening on a copy."
        )


@torch.no_grad()
def fold_whitening(sae: Any, reads: Whitening, writes: Whitening | None = None) -> None:
    """Make an SAE trained on whitened activations work on raw ones, in place.

    Afterwards `sae(x) == writes.undo(old_sae(reads.apply(x)))`, and the config says "none". With
    `reads.inverted()` and `writes.inverted()` it is undone, but for decoder norms that selections
    went by: these stay in the encoder.

    Args:
        sae: any SAE with an encoder and a decoder of its own.
        reads: the map of its input.
        writes: that of its output; the same when None.

    Raises:
        ValueError: for an architecture of another kind.
    """
    refuse_whitening(str(sae.cfg.architecture), WHITENING)
    weights: dict[str, nn.Parameter] = sae._parameters
    if not weights.keys() >= _LAYOUT:
        raise ValueError(
            f"A {sae.cfg.architecture!r} SAE has not the weights {sorted(_LAYOUT)}, into which "
            "whitening is folded."
        )
    if getattr(sae, "rescales_acts", False):
        sae.fold_W_dec_norm()
        sae.cfg.rescale_acts_by_decoder_norm = False
    reads = reads.to(sae.device)
    writes = reads if writes is None else writes.to(sae.device)
    W_enc = reads.matrix @ weights["W_enc"].float()
    if not sae.cfg.apply_b_dec_to_input:
        _shift_pre_activations(weights, reads.mean @ W_enc)
    b_dec = weights["b_dec"].float() @ writes.inverse + writes.mean
    if "W_skip" in weights:
        skip = reads.matrix @ weights["W_skip"].float().T @ writes.inverse
        b_dec = b_dec - reads.mean @ skip
        weights["W_skip"].copy_(skip.T)
    weights["W_enc"].copy_(W_enc)
    weights["W_dec"].copy_(weights["W_dec"].float() @ writes.inverse)
    weights["b_dec"].copy_(b_dec)
    sae.cfg.normalize_activations = "none"


def _shift_pre_activations(weights: dict[str, nn.Parameter], mean_pre: Tensor) -> None:
    """Take the mean's part out of the biases, gates' and magnitudes' among them."""
    for name in ("b_enc", "b_gate"):
        if name in weights:
            weights[name].sub_(mean_pre)
    if "b_mag" in weights:
        weights["b_mag"].sub_(mean_pre * weights["r_mag"].exp())
