"""Flat fields of a run for an architecture that flat configs do not know, and output hooks.

Such an architecture has a config class of its own (`sae=`). Where that is not given, it is made
from the flat fields that were named; all others have the defaults of the class.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

from sae_lens.hook_names import refuse_wrong_order
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.config import FLAT_ARCHITECTURES, ArchitectureTrainingSAEConfig
from sae_lens.saes.transcoder_training import PairedTrainingConfig

# Flat names of what the classes' own configs call otherwise.
_OTHER_NAMES = {
    "activation_fn": "activation_fn_str",
    "l1_coefficient": "l0_coefficient",
    "l1_warm_up_steps": "l0_warm_up_steps",
}
# The run has these by itself, or they are about something else there.
_OF_THE_RUN = ("architecture", "device", "metadata", "reshape_activations")


def make_own_sae_config(cfg: Any, named: frozenset[str]) -> None:
    """Give a flat config of a newer architecture its `sae`.

    Raises:
        ValueError: for an unknown architecture, or without a k where one is needed.
    """
    architecture = str(cfg.architecture)
    if cfg.sae is not None or architecture in FLAT_ARCHITECTURES:
        return
    config_class = get_sae_training_class(architecture).config_class
    if not issubclass(config_class, ArchitectureTrainingSAEConfig):
        return  # of somebody's own, who knows what to do with flat fields
    own = {f.name for f in fields(config_class)} - set(_OF_THE_RUN)
    values = {
        name: getattr(cfg, flat)
        for flat in named
        if (name := _name_in(own, flat)) is not None and getattr(cfg, flat) is not None
    }
    values.pop("activation_fn_kwargs", None)
    if "k" in own:
        k = (cfg.activation_fn_kwargs or {}).get("k")
        if k is None:
            raise ValueError(
                f"The {architecture} architecture needs a k, as in activation_fn_kwargs={{'k': "
                f"32}}; it is {cfg.activation_fn_kwargs}."
            )
        values["k"] = k
    values["d_in"] = cfg.d_in
    if cfg.d_sae is None:
        values["d_sae"] = cfg.d_in * (cfg.expansion_factor or 4)
    if issubclass(config_class, PairedTrainingConfig) and cfg.hook_name_out is not None:
        values["hook_name_out"] = cfg.hook_name_out
    cfg.sae = config_class(**values)


def take_output_hook(cfg: Any, named: frozenset[str]) -> None:
    """Settle `hook_name_out` and `d_out` between a run's config and that of its transcoder.

    Raises:
        ValueError: when they contradict each other, the SAE is no transcoder, or the output hook
            runs before the input hook.
    """
    wanted = {name: getattr(cfg, name) for name in ("hook_name_out", "d_out")}
    if not isinstance(cfg.sae, PairedTrainingConfig):
        given = [f"{name}={value!r}" for name, value in wanted.items() if value is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)} is for transcoders, which have an output hook; this SAE is a "
                f"{cfg.architecture!r} one. Choose architecture='transcoder' or another "
                "transcoder, or leave it out."
            )
        return
    if cfg.hook_head_index is not None:
        raise ValueError(
            f"hook_head_index is {cfg.hook_head_index}; a {cfg.architecture} reads whole hooks. "
            "Leave it out."
        )
    sae: Any = cfg.sae
    if cfg.hook_name_out is not None and sae.hook_name_out in (None, cfg.hook_name_out):
        sae = cfg.sae = copy.deepcopy(sae)  # the caller's own stays as it is
        sae.hook_name_out = cfg.hook_name_out
    for name, value in wanted.items():
        if value is not None and name in named and value != getattr(sae, name):
            raise ValueError(
                f"{name}={value!r} contradicts {name}={getattr(sae, name)!r} of sae=; leave one of "
                "them out."
            )
        setattr(cfg, name, getattr(sae, name))
    if cfg.hook_name_out is None:
        raise ValueError(
            f"A {cfg.architecture} has an output hook besides hook_name={cfg.hook_name!r}: set "
            "hook_name_out, such as 'blocks.0.hook_mlp_out' for the MLP of layer 0."
        )
    refuse_wrong_order(cfg.hook_name, cfg.hook_name_out)


def _name_in(own: set[str], flat: str) -> str | None:
    """What a class with these fields calls a flat field; None when it has no such."""
    other = _OTHER_NAMES.get(flat)
    if other in own:
        return other
    return flat if flat in own else None
