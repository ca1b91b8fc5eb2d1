"""First weights of an SAE, by rule or by trying out on real activations.

`draw_weights` sets what needs no decoder bias, `fit_weights` what does; between the two the caller
sets that bias. Batches are what the SAE's training pass takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.saes.training_step import TrainStepInput
from sae_lens.saes.weights import divisors, unit_rows_
from sae_lens.whitening import Whitening

# Weights of an MLP's second layer under their names in models of the transformers library.
_MLP_OUTPUTS = re.compile(r"\.(\d+)\.mlp\.(down_proj|c_proj|dense_4h_to_h|fc_out|fc2)$")


@dataclass
class InitialWeights:
    """First weights other than those that the SAE's config asks for. None leaves them as they are.

    Attributes:
        decoder_bound: decoder entries are uniform in plus or minus this.
        encoder_bound: encoder entries likewise.
        threshold: first threshold of jumprelu features.
        decoder_from_mlp_layer: a transcoder's decoder rows are the output weights of the language
            model's MLP in this layer, over and over when there are too few.
        active_subspace: project decoder rows into that many principal directions of the
            activations.
        search_decoder_norm: give decoder rows the norm with which activations are reconstructed
            best at the start.
        encoder_as_decoder_transpose: the encoder is this multiple of the decoder's transpose.
        center_pre_activations: subtract the mean pre-activation from the encoder's bias.
    """

    decoder_bound: float | None = None
    encoder_bound: float | None = None
    threshold: float | None = None
    decoder_from_mlp_layer: int | None = None
    active_subspace: int | None = None
    search_decoder_norm: bool = False
    encoder_as_decoder_transpose: float | None = None
    center_pre_activations: bool = False

    def __post_init__(self) -> None:
        for name in ("decoder_bound", "encoder_bound", "threshold", "encoder_as_decoder_transpose"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"initial_weights.{name} is {value}; it must be above 0.")
        if self.active_subspace is not None and self.active_subspace < 1:
            raise ValueError(
                f"initial_weights.active_subspace is {self.active_subspace}; it is a number of "
                "dimensions, at least 1."
            )
        if self.decoder_bound is not None and self.decoder_from_mlp_layer is not None:
            raise ValueError(
                "initial_weights.decoder_bound and decoder_from_mlp_layer both set the decoder; "
                "give one of them."
            )
        if self.encoder_bound is not None and self.encoder_as_decoder_transpose is not None:
            raise ValueError(
                "initial_weights.encoder_bound and encoder_as_decoder_transpose both set the "
                "encoder; give one of them."
            )


@torch.no_grad()
def draw_weights(
    sae: Any,
    rules: InitialWeights,
    batch: Float[Tensor, "n width"] | None = None,
    model: Any = None,
    whitening: Whitening | None = None,
) -> None:
    """Uniform weights, thresholds, the decoder from an MLP or into a subspace, then the transpose.

    Args:
        sae: a training SAE; changed in place.
        rules: which of them.
        batch: activations, for the subspace.
        model: the language model, for the MLP.
        whitening: of what is reconstructed, likewise; None where it is not whitened.

    Raises:
        ValueError: when a rule does not go with the SAE, the batch or the model.
    """
    _check_weights(sae, rules)
    if rules.decoder_bound is not None:
        sae.W_dec.uniform_(-rules.decoder_bound, rules.decoder_bound)
    if rules.encoder_bound is not None:
        sae.W_enc.uniform_(-rules.encoder_bound, rules.encoder_bound)
    if rules.threshold is not None:
        fill_thresholds(sae, rules.threshold)
    if rules.decoder_from_mlp_layer is not None:
        decoder_from_mlp(sae, model, rules.decoder_from_mlp_layer)
        if whitening is not None:  # directions of raw activations, as they are when whitened
            sae.W_dec.copy_(sae.W_dec.float() @ whitening.to(sae.device).matrix)
    if rules.active_subspace is not None:
        if batch is None:
            raise ValueError("initial_weights.active_subspace needs a batch of activations.")
        decoder_into_active_subspace(sae, batch, rules.active_subspace)
    _apply_transpose(sae, rules)


@torch.no_grad()
def fit_weights(sae: Any, rules: InitialWeights, batch: Float[Tensor, "n width"]) -> float | None:
    """Centre pre-activations and search the decoder's norm, as `rules` say; returns that norm.

    The norm is the one of 50 between 0.1 and 5, then of 20 around the best, with which the batch is
    reconstructed best; the transpose and the centring follow it.
    """
    if rules.center_pre_activations:
        center_pre_activations(sae, batch)
    best = None
    if rules.search_decoder_norm:
        coarse = _best_norm(sae, rules, batch, torch.linspace(0.1, 5.0, 50).tolist())
        fine = torch.linspace(coarse - 0.09, coarse + 0.1, 20).tolist()
        best = _best_norm(sae, rules, batch, fine)
        unit_rows_(sae.W_dec.data, best)
    _apply_transpose(sae, rules)
    if rules.center_pre_activations:
        center_pre_activations(sae, batch)
    return best


def fill_thresholds(sae: Any, value: float) -> None:
    """Give every feature of a jumprelu SAE this threshold."""
    for name, parameter in sae.named_parameters():
        if name == "log_threshold":
            parameter.data.fill_(math.log(value))
        elif name == "threshold":
            parameter.data.fill_(value)


@torch.no_grad()
def center_pre_activations(sae: Any, batch: Float[Tensor, "n width"]) -> None:
    """Encoder bias minus the mean pre-activation; doing so twice is doing so once."""
    with _trying_out(sae):
        mean = _training_pass(sae, batch).hidden_pre.mean(dim=0)
    if getattr(sae, "rescales_acts", False):
        mean = mean / divisors(sae.decoder_norms())
    if "b_gate" in sae._parameters:  # the magnitude's pre-activations are scaled ones of the gate
        scale = sae.r_mag.exp()
        product = (mean - sae.b_mag) / scale
        sae.b_gate.copy_(-product)
        sae.b_mag.copy_(-product * scale)
    else:
        sae.b_enc.sub_(mean)


@torch.no_grad()
def decoder_into_active_subspace(sae: Any, batch: Float[Tensor, "n width"], k: int) -> None:
    """`W_dec[:, :k] @ U[:, :k]^T` with U the principal directions of the centred targets."""
    _, target = sae.split_batch(batch)
    if target is batch:
        target = sae.run_time_activation_norm_fn_in(sae.reshape_fn_in(target.to(sae.dtype)))
    target = target.float()
    dimensions = min(target.shape)
    if k > dimensions:
        raise ValueError(
            f"The active subspace is to have {k} dimensions; the {len(target)} activations span at "
            f"most {dimensions}."
        )
    U = torch.linalg.svd((target - target.mean(dim=0)).T, full_matrices=False)[0]
    sae.W_dec.copy_(sae.W_dec[:, :k] @ U[:, :k].T.to(sae.W_dec.dtype))


@torch.no_grad()
def decoder_from_mlp(sae: Any, model: Any, layer: int) -> None:
    """Decoder rows of a transcoder from the MLP's output weights."""
    hook_name_out = getattr(sae.cfg, "hook_name_out", None)
    if hook_name_out in (None, sae.cfg.hook_name):
        raise ValueError(
            "A decoder from the model's MLP is for transcoders; this SAE reconstructs its own "
            "input."
        )
    if model is None:
        raise ValueError("A decoder from the model's MLP needs the model.")
    W_out = mlp_output_weights(model, layer)
    if W_out.shape[1] != sae.W_dec.shape[1]:
        raise ValueError(
            f"The MLP in layer {layer} writes {W_out.shape[1]} dimensions, the transcoder "
            f"{sae.W_dec.shape[1]}; choose the layer of its output hook."
        )
    rows = torch.arange(len(sae.W_dec)) % len(W_out)
    sae.W_dec.copy_(W_out[rows.to(W_out.device)].to(sae.W_dec))


def mlp_output_weights(model: Any, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The second layer of an MLP, of a TransformerLens model or one of the transformers library.

    Raises:
        ValueError: when there is no such layer, or an MLP of another kind.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is not None and 0 <= layer < len(blocks):
        weights = getattr(getattr(blocks[layer], "mlp", None), "W_out", None)
        if weights is not None and weights.ndim == 2:
            return weights.detach()
    for name, module in getattr(model, "named_modules", dict)():
        found = _MLP_OUTPUTS.search(name)
        if found is not None and int(found[1]) == layer:
            weights = module.weight.detach()
            # transformers' Conv1D holds [in, out], torch's Linear [out, in]
            return weights if type(module).__name__ == "Conv1D" else weights.T
    raise ValueError(
        f"The model has no MLP with output weights in layer {layer} that could be read: neither "
        f"blocks[{layer}].mlp.W_out nor an output projection of a transformers model."
    )


# -- parts ----------------------------------------------------------------------------------------


def _check_weights(sae: Any, rules: InitialWeights) -> None:
    architecture = str(sae.cfg.architecture)
    names = sae._parameters.keys()
    if "W_enc" not in names and (
        rules.encoder_bound or rules.encoder_as_decoder_transpose or rules.center_pre_activations
    ):
        raise ValueError(
            f"initial_weights names rules for an encoder; {architecture!r} SAEs have none of their "
            "own."
        )
    if rules.threshold is not None and not {"threshold", "log_threshold"} & names:
        raise ValueError(
            f"initial_weights.threshold is for jumprelu SAEs; {architecture!r} has no thresholds."
        )
    if rules.encoder_as_decoder_transpose is not None and sae.W_enc.T.shape != sae.W_dec.shape:
        raise ValueError(
            f"The encoder, {tuple(sae.W_enc.shape)}, cannot be the transpose of the decoder, "
            f"{tuple(sae.W_dec.shape)}; leave initial_weights.encoder_as_decoder_transpose out."
        )
    of_decoder = rules.active_subspace or rules.search_decoder_norm or rules.decoder_from_mlp_layer
    if of_decoder is not None and of_decoder is not False and len(sae.W_dec) != sae.cfg.d_sae:
        raise ValueError(
            f"initial_weights has rules for a decoder of one matrix; that of {architecture!r} has "
            f"the shape {tuple(sae.W_dec.shape)}."
        )


def _apply_transpose(sae: Any, rules: InitialWeights) -> None:
    if rules.encoder_as_decoder_transpose is not None:
        sae.W_enc.copy_(rules.encoder_as_decoder_transpose * sae.W_dec.T)


def _best_norm(
    sae: Any, rules: InitialWeights, batch: Float[Tensor, "n width"], norms: list[float]
) -> float:
    losses = []
    for norm in norms:
        unit_rows_(sae.W_dec.data, norm)
        _apply_transpose(sae, rules)
        if rules.center_pre_activations:
            center_pre_activations(sae, batch)
        with _trying_out(sae):
            losses.append(_training_pass(sae, batch).losses["mse_loss"].item())
    return norms[losses.index(min(losses))]


def _training_pass(sae: Any, batch: Tensor) -> Any:
    coefficients = dict.fromkeys(sae.get_coefficients(), 0.0)
    return sae.training_forward_pass(TrainStepInput(batch, coefficients))


@contextmanager
def _trying_out(sae: Any) -> Iterator[None]:
    """Inside, passes are dense and without noise; what they change is undone afterwards."""
    was_training, mode = sae.training, sae.sparse_kernels
    buffers = {name: value.clone() for name, value in sae.named_buffers()}
    sae.eval()
    sae.sparse_kernels = "dense"
    try:
        yield
    finally:
        sae.train(was_training)
        sae.sparse_kernels = mode
        for name, value in sae.named_buffers():
            value.copy_(buffers[name])
