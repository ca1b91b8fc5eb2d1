"""Settings of a training config that do nothing for the architecture, or beside the others."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

# Flat configs say with these how the first weights are drawn; the others have `decoder_init_norm`.
_FIRST_WEIGHTS = (
    "decoder_orthogonal_init",
    "decoder_heuristic_init",
    "decoder_heuristic_init_norm",
    "init_encoder_as_decoder_transpose",
)


def idle_settings(cfg: Any) -> dict[str, Any]:
    """Settings that were changed and have no effect, with their values.

    Args:
        cfg: the training config of an SAE, or a run's config with the flat fields of one. Nothing
            is said about configs from outside the library, which may be read by others.
    """
    if not type(cfg).__module__.startswith("sae_lens."):
        return {}
    defaults = {f.name: f.default for f in fields(cfg)}
    # runs derive theirs, and flat configs of SAEs have none
    derived = "topk" if cfg.architecture == "topk" else "relu"
    for name in ("activation_fn", "activation_fn_str"):
        if defaults.get(name) in (None, MISSING):
            defaults[name] = derived
    return {
        name: getattr(cfg, name)
        for name, is_used in _uses(cfg).items()
        if not is_used and getattr(cfg, name, defaults.get(name)) != defaults.get(name)
    }


def _uses(cfg: Any) -> dict[str, bool]:
    """Whether each setting that not all training passes look at has an effect."""
    architecture, is_flat = str(cfg.architecture), getattr(cfg, "form", "v5") == "v5"
    jumps, is_gated = "jumprelu" in architecture, architecture == "gated"
    has_own_rule = "topk" in architecture or architecture == "matching_pursuit"
    by_sign = not (jumps or has_own_rule)
    applies_function = by_sign or architecture in ("topk", "topk_crosscoder")
    has_l1 = not has_own_rule and (is_flat or not jumps)
    loss = getattr(cfg, "sparsity_loss", "power")
    if jumps:
        loss = getattr(cfg, "jumprelu_sparsity_loss_mode", "step")
    starts_heuristically = is_flat and getattr(cfg, "decoder_heuristic_init", False)
    return {
        **dict.fromkeys(_FIRST_WEIGHTS, is_flat),
        "decoder_heuristic_init_norm": starts_heuristically,
        "activation_fn": applies_function,
        "activation_fn_str": applies_function,
        "l1_coefficient": has_l1,
        "l1_warm_up_steps": has_l1,
        "lp_norm": not has_own_rule and loss == "power" and not (is_flat and is_gated),
        "scale_sparsity_penalty_by_decoder_norm": by_sign and not is_gated,
        "tanh_stretch": loss in ("tanh", "tanh-quad"),
        "jumprelu_tanh_scale": loss in ("tanh", "tanh-quad"),
        "frequency_scale": loss == "tanh-quad",
        "target_l0": loss == "quadratic",
        "jumprelu_init_threshold": jumps,
        "jumprelu_bandwidth": jumps,
        "noise_scale": not is_gated and architecture != "matching_pursuit",
    }
