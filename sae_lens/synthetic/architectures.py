"""The training config of every architecture for a wanted number of active latents."""

from __future__ import annotations

from typing import Any

from sae_lens.registry import SAE_TRAINING_CLASSES, get_sae_training_class
from sae_lens.saes import TrainingSAEConfig
from sae_lens.synthetic.views import HOOKS

_KINDS = ("cross_layer_transcoder", "crosscoder", "transcoder")  # the longer names first

# What selects, by the name that is left without the kind. Where there is no k, the sparsity
# coefficient is steered towards the wanted number.
_STEERED = ("standard", "gated", "jumprelu", "", "skip")
_HOOKS = [f"blocks.{layer}.ln2.hook_normalized" for layer in range(HOOKS)]
_HOOKS_OUT = [f"blocks.{layer}.hook_mlp_out" for layer in range(HOOKS)]


def architectures() -> tuple[str, ...]:
    """Every architecture that can be trained: SAEs first, then by kind."""
    return tuple(
        sorted(SAE_TRAINING_CLASSES, key=lambda name: ("sae", *_KINDS[::-1]).index(kind_of(name)))
    )


def kind_of(architecture: str) -> str:
    """Which view of the features it has: "sae", "transcoder", "crosscoder", ..."""
    return next((kind for kind in _KINDS if architecture.endswith(kind)), "sae")


def is_steered(architecture: str) -> bool:
    """Whether it has no k."""
    return _form(architecture) in _STEERED or _form(architecture) == "jumprelu_skip"


def config_for(architecture: str, wanted_l0: float, d_in: int, d_sae: int) -> TrainingSAEConfig:
    """Its training config.

    Args:
        architecture: its name.
        wanted_l0: active latents per sample.
        d_in: width of each place that is read.
        d_sae: latents.
    """
    kind = kind_of(architecture)
    settings: dict[str, Any] = _settings(_form(architecture), wanted_l0, d_sae)
    if kind == "crosscoder":
        settings["hook_names"] = _HOOKS
    elif kind == "cross_layer_transcoder":
        settings |= {"hook_names": _HOOKS, "hook_names_out": _HOOKS_OUT}
        if "k" in settings:  # which is that of each layer
            settings["k"] = max(1, round(settings["k"] / HOOKS))
    config_class = get_sae_training_class(architecture).config_class
    return config_class(d_in=d_in, d_sae=d_sae, **settings)


def _form(architecture: str) -> str:
    kind = kind_of(architecture)
    return architecture if kind == "sae" else architecture.removesuffix(kind).rstrip("_")


def _settings(form: str, l0: float, d_sae: int) -> dict[str, Any]:
    if form in ("topk", "topk_skip", "abstopk"):
        return {"k": max(1, round(l0))}
    if form in ("batchtopk", "batchtopk_skip"):
        return {"k": l0}
    if form == "matryoshka_batchtopk":
        return {"k": l0, "matryoshka_widths": [max(1, d_sae // 4), max(2, d_sae // 2), d_sae]}
    if form == "matching_pursuit":
        return {"max_iterations": max(1, round(l0)), "decoder_init_norm": 1.0}
    if form.startswith("jumprelu"):
        return {
            "l0_coefficient": 0.02,
            "jumprelu_bandwidth": 0.1,
            "jumprelu_init_threshold": 0.01,
        }
    return {"l1_coefficient": 0.05}
