"""The sparse form of a training step: the numbers of the dense form, from active entries only.

One dense product finds the entries (`kernels/active_entries.py`, `kernels/top_entries.py`); what
decoding, losses and all gradients then cost grows with the number of entries. Terms about dead
features are computed densely, over those features alone.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.kernels.active_entries import ActiveEntries
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.autograd import hidden_at_entries
from sae_lens.kernels.dispatch import has_sparse_kernels, is_worth_choosing
from sae_lens.kernels.entry_capacity import EntryCapacity
from sae_lens.kernels.filled_entries import find_entries
from sae_lens.saes.dead_features import may_look_at
from sae_lens.saes.hooks import has_active_hooks
from sae_lens.saes.training_step import (
    SparseTrainingDecoding,
    SparseTrainStepOutput,
    TrainingEncoding,
    TrainStepInput,
    TrainStepOutput,
)

if TYPE_CHECKING:
    from sae_lens.saes.training import TrainingSAE

# Whoever overrides one of these in a subclass of an architecture means it: the sparse form, which
# does not call them, then stands back.
_DENSE_FORMULAS = (
    "encode_for_training",
    "auxiliary_losses",
    "linear_encode",
    "linear_decode",
    "decoder_norms",
    "split_batch",
    "add_bypass",
    "decode",
    "process_sae_in",
    "reshape_fn_in",
    "reshape_fn_out",
    "run_time_activation_norm_fn_in",
    "run_time_activation_norm_fn_out",
    "apply_finetuning_scaling_factor",
    "rescaled_hidden_pre",
    "gate_and_magnitude",
    "calculate_topk_aux_loss",
    "calculate_ghost_grad_loss",
    "aux_loss",
    "encode_with_hidden_pre_fn",
    "encode_with_hidden_pre",
    "encode_with_hidden_pre_gated",
    "encode_with_hidden_pre_jumprelu",
)


def may_be_sparse(sae: TrainingSAE, step: TrainStepInput) -> bool:
    """Whether the step has a sparse form, and in "auto" mode is large enough to ask for it."""
    if sae.sparse_kernels == "dense" or torch.compiler.is_compiling():
        return False
    return (
        step.sae_in.ndim == 2
        and (
            sae.sparse_kernels == "sparse"
            or is_worth_choosing(sae.device, len(step.sae_in), sae.cfg.d_in, sae.cfg.d_sae)
        )
        and _formulas_are_the_architectures(type(sae))
        and sae.has_sparse_form()
        and sae.loss_terms(step).has_sparse_form()
        and has_sparse_kernels(sae.device, sae.dtype)
        and not has_active_hooks(sae)
        and not sae._forward_is_noisy()
    )


@cache
def _formulas_are_the_architectures(sae_class: type) -> bool:
    for ancestor in sae_class.__mro__:
        own = vars(ancestor)
        if "sparse_encode_for_training" in own:
            return True
        # a class that brings its losses in both forms has not changed one behind the other's back
        paired = {"auxiliary_losses"} if "sparse_auxiliary_losses" in own else set()
        paired |= set(own.get("in_both_forms", ()))
        if any(name in own for name in _DENSE_FORMULAS if name not in paired):
            return False
    return False


def sparse_training_pass(
    sae: TrainingSAE, step: TrainStepInput, sae_in: Float[Tensor, "batch d_in"]
) -> TrainStepOutput:
    """Features of `sae_in`, reconstruction of `step.sae_in` and loss, at active entries."""
    x = sae.reshape_fn_in(sae_in.to(sae.dtype))
    x = sae.run_time_activation_norm_fn_in(x)
    terms = sae.loss_terms(step)
    encoding = sae.sparse_encode_for_training(x)
    active, density = encoding.active, encoding.active.density
    if isinstance(density, float):
        sae._sparse_choice.observe(density)

    decoded = sae.sparse_decode(
        torch.stack([v for v in (encoding.decoded_values, encoding.gate_values) if v is not None]),
        active,
    )
    recons = decoded.recons.unbind()  # its gradient is one copy, that of indexing a sum of two
    sae_out = sae.add_bypass(finish_decoding(sae, recons[0]), sae_in)
    decoding = SparseTrainingDecoding(
        processed_in=x,
        sae_out=sae_out,
        gate_recons=None if encoding.gate_values is None else recons[1],
        decoder_norms=decoded.norms,
    )
    losses = {"mse_loss": sae.mse_loss_fn(sae_out, step.sae_in).sum(dim=-1).mean()}
    losses |= terms.sparse_auxiliary_losses(step, encoding, decoding)
    loss = torch.stack([part.to(losses["mse_loss"].dtype) for part in losses.values()]).sum()
    is_incomplete = active.is_incomplete
    if is_incomplete is not None:  # what is not the whole gradient is none
        loss = torch.where(is_incomplete, loss.detach(), loss)
    given: dict[str, Any] = {
        "sae_in": step.sae_in,
        "sae_out": sae_out,
        "loss": loss,
        "losses": losses,
        "metrics": {
            **sae.training_metrics(),
            "sparse_kernels": 1.0,
            "active_density": density,
            **_left_out(sae),
        },
        "is_incomplete": is_incomplete,
    }
    features = active.sparse_coo(encoding.feature_values)
    if sae.sparse_kernels == "sparse":
        hidden_pre = active.sparse_coo(encoding.hidden_values)
        return TrainStepOutput(feature_acts=features, hidden_pre=hidden_pre, **given)
    # Nobody asked for a sparse tensor, so nobody need know how to use one.
    return SparseTrainStepOutput(features, partial(_all_hidden_pre, sae, sae_in), **given)


def _left_out(sae: TrainingSAE) -> dict[str, float]:
    n = sum(capacity.n_left_out for capacity in sae._entry_capacities.values())
    return {"batches_left_out": float(n)} if n else {}


def _all_hidden_pre(sae: TrainingSAE, x: Tensor) -> Float[Tensor, "batch d_sae"]:
    """All pre-activations of a batch, by the weights as they are when this is called."""
    return sae.encode_for_training(x).hidden_pre


def measure_density(sae: TrainingSAE, encoding: TrainingEncoding) -> dict[str, Any]:
    """Note the density of a dense step now and then; what of it is worth logging."""
    choice = sae._sparse_choice
    if choice.wants_measurement():
        with torch.no_grad():
            choice.observe(float(sae.count_active(encoding)) / encoding.feature_acts.numel())
    metrics: dict[str, Any] = {"sparse_kernels": 0.0}
    if choice.density is not None:
        metrics["active_density"] = choice.density
    return metrics


def centred(sae: TrainingSAE, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
    """Processed activations minus the decoder bias, if the config wants that."""
    return x - sae.b_dec if sae.cfg.apply_b_dec_to_input else x


def entries_above(
    sae: TrainingSAE,
    x: Float[Tensor, "batch d_in"],
    b_enc: Float[Tensor, " d_sae"] | None,
    lower: Float[Tensor, " d_sae"],
) -> tuple[ActiveSet, Float[Tensor, " nnz"]]:
    """Entries whose pre-activation exceeds `lower`, and the pre-activations (differentiable)."""
    with torch.no_grad():
        read = centred(sae, x)
        found = find_entries(read, sae.W_enc, b_enc, lower, sae._workspace, capacity_of(sae, x))
    return found.active, with_gradient(sae, x, b_enc, found)


def capacity_of(sae: TrainingSAE, x: Tensor, matrix: int = 0) -> EntryCapacity | None:
    """For how many entries to make room, where the host does not wait to learn how many there are.

    Args:
        sae: the SAE.
        x: what is encoded.
        matrix: which of the matrices of pre-activations, where a step searches several.
    """
    return None if may_look_at(x) else sae._entry_capacities[matrix]


def with_gradient(
    sae: TrainingSAE,
    x: Float[Tensor, "batch d_in"],
    b_enc: Float[Tensor, " d_sae"] | None,
    found: ActiveEntries,
) -> Float[Tensor, " nnz"]:
    """The pre-activations found, as a differentiable function of input and weights."""
    b_dec = sae.b_dec if sae.cfg.apply_b_dec_to_input else None
    return hidden_at_entries(x, b_dec, sae.W_enc, b_enc, found, sae._workspace)


def finish_decoding(
    sae: TrainingSAE, recons: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch d_in"]:
    """Add the decoder bias and undo the normalisation, as `decode` does."""
    out = sae.run_time_activation_norm_fn_out(recons + sae.b_dec)
    return sae.reshape_fn_out(out, sae.d_head)


def scaled_for_decoding(
    sae: TrainingSAE, values: Float[Tensor, " nnz"], cols: Int[Tensor, " nnz"]
) -> Float[Tensor, " nnz"]:
    """Feature values times the fine-tuned factor, when the config has one."""
    if sae.cfg.finetuning_scaling_factor:
        return values * sae.finetuning_scaling_factor.index_select(0, cols)
    return values


def hidden_pre_of(
    sae: TrainingSAE, x: Float[Tensor, "batch d_in"], features: Int[Tensor, " n"]
) -> Float[Tensor, "batch n"]:
    """Pre-activations of some features, dense and differentiable."""
    return sae.linear_encode_some(centred(sae, x), features)
