"""The weights of an SAE in training, brought to the form in which they are saved, and back.

What is done to activations on their way to the trainer (scaling, whitening) is folded into what is
saved, so that every SAE in a file works on raw activations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sae_lens.saes.whitening import WHITENING, fold_whitening
from sae_lens.training.sources import SCALED_BY_THE_SOURCE, ActivationSource


@torch.no_grad()
def fold_source(sae: Any, source: ActivationSource) -> None:
    """Fold the scaling or whitening of `source` into `sae`, in place."""
    if source.norm_scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(source.norm_scaling_factor)
    if source.whitening is not None:
        fold_whitening(sae, *source.whitening)


@torch.no_grad()
def bring_into_source_space(sae: Any, source: ActivationSource, kind: str) -> None:
    """Make an SAE that works on raw activations one that works on those of `source`, in place.

    One that is not known to work on raw activations stays as it is.

    Args:
        sae: such as one from a checkpoint's files.
        source: whose scaling or whitening is known.
        kind: the run's `normalize_activations`.
    """
    if sae.cfg.normalize_activations != "none" or kind not in (SCALED_BY_THE_SOURCE, WHITENING):
        return
    if source.norm_scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(1.0 / source.norm_scaling_factor)
    if source.whitening is not None:
        fold_whitening(sae, *(part.inverted() for part in source.whitening))
    sae.cfg.normalize_activations = kind


@torch.no_grad()
def saved_form(
    sae: Any,
    source: ActivationSource,
    unit_decoder: bool = False,
    averages: Mapping[str, Tensor] | None = None,
) -> Any:
    """An SAE for saving and evaluating: that of training with everything folded in.

    The one in training is not changed; where there is nothing to do, it is what is returned.

    Args:
        sae: the SAE in training.
        source: where its activations come from.
        unit_decoder: whether decoder rows are to have unit norm before the fold.
        averages: parameters that are saved in place of the SAE's own.
    """
    is_raw = source.norm_scaling_factor is None and source.whitening is None
    if is_raw and not unit_decoder and not averages:
        return sae
    folded = with_averages(sae, averages) if averages else detached_copy(sae)
    if unit_decoder:
        folded.set_decoder_norm_to_unit_norm()
    fold_source(folded, source)
    return folded


@torch.no_grad()
def with_averages(sae: Any, averages: Mapping[str, Tensor]) -> Any:
    """A copy of an SAE that has these parameters; the SAE itself when there are none."""
    if not averages:
        return sae
    twin = detached_copy(sae)
    for name, value in averages.items():
        twin.get_parameter(name).copy_(value)
    return twin


def record_filter(cfg: Any, source: ActivationSource) -> None:
    """Note in an SAE's config which activations it is trained without, for others to repeat.

    `norm_filter_multiple` and `norm_filter_median` in the metadata: longer ones than the product,
    before scaling, are left out.
    """
    if source.norm_median is not None and hasattr(cfg, "extra_metadata"):
        cfg.extra_metadata["norm_filter_multiple"] = source.settings.norm_multiple
        cfg.extra_metadata["norm_filter_median"] = source.norm_median


def detached_copy(sae: Any) -> Any:
    """A copy with weights and config of its own; all else is shared."""
    twin = copy.copy(sae)
    twin.__dict__["_parameters"] = {
        name: nn.Parameter(value.detach().clone(), requires_grad=False)
        for name, value in sae._parameters.items()
    }
    twin.__dict__["_buffers"] = {
        name: None if value is None else value.detach().clone()
        for name, value in sae._buffers.items()
    }
    twin.__dict__["cfg"] = copy.deepcopy(sae.cfg)
    return twin
