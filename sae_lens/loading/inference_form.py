"""Files of SAEs that select over a whole batch, as the inference SAEs they are used as.

Training a BatchTopK (or Matryoshka BatchTopK) SAE keeps a running threshold; afterwards a feature
fires where its pre-activation, times its decoder norm if selection was by that, exceeds the
threshold (Bussmann, Leask & Nanda 2024, arXiv:2412.06410, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_lens.errors import SAELoadError

BATCH_ARCHITECTURES = (
    "batchtopk",
    "matryoshka_batchtopk",
    "batchtopk_transcoder",
    "batchtopk_skip_transcoder",
    "topk_transcoder",
    "topk_skip_transcoder",
)


def inference_architecture(architecture: str) -> str:
    """What an SAE trained as `architecture` is used as: those that select, with a threshold."""
    if architecture not in BATCH_ARCHITECTURES:
        return architecture
    _, _, rest = architecture.removeprefix("matryoshka_").partition("_")
    return f"jumprelu_{rest}" if rest else "jumprelu"


def inference_form(
    cfg_dict: Mapping[str, Any], state_dict: Mapping[str, Tensor], where: str = "the SAE"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A batch-selecting SAE as jumprelu; other architectures as they are. Nothing given changes.

    Raises:
        SAELoadError: when the running threshold is missing.
    """
    cfg_dict, state_dict = dict(cfg_dict), dict(state_dict)
    if str(cfg_dict.get("architecture")) not in BATCH_ARCHITECTURES:
        return cfg_dict, state_dict
    if "topk_threshold" not in state_dict:
        raise SAELoadError(
            f"{where} is a {cfg_dict['architecture']} SAE without its topk_threshold, so the "
            "threshold for inference is not known."
        )
    threshold = float(state_dict.pop("topk_threshold"))
    # The training class rescales unless its config says otherwise.
    if cfg_dict.get("rescale_acts_by_decoder_norm", True):
        norms = state_dict["W_dec"].norm(dim=-1)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        state_dict["W_dec"] = state_dict["W_dec"] / norms.unsqueeze(-1)
        state_dict["W_enc"] = state_dict["W_enc"] * norms
        state_dict["b_enc"] = state_dict["b_enc"] * norms
    state_dict["threshold"] = torch.full_like(state_dict["b_enc"], threshold)
    architecture = inference_architecture(str(cfg_dict["architecture"]))
    for name in ("k", "rescale_acts_by_decoder_norm"):
        cfg_dict.pop(name, None)
    jumprelu = {
        "architecture": architecture,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
    }
    return {**cfg_dict, **jumprelu}, state_dict
