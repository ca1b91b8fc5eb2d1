"""Which store serves the activations that an SAE needs: of one hook, of a pair, or of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sae_lens.activations.joint import JointActivationsStore
from sae_lens.activations.model_group import ModelGroup
from sae_lens.activations.paired import PairedActivationsStore
from sae_lens.activations.store import ActivationsStore


def store_class_for(sae_config: Any) -> type[ActivationsStore]:
    """The class of store for an SAE of that config; None is an ordinary one."""
    if getattr(sae_config, "sites", None):
        return JointActivationsStore
    if getattr(sae_config, "hook_name_out", None) is not None:
        return PairedActivationsStore
    return ActivationsStore


def model_for(cfg: Any, given: Any, load: Callable[[str], Any]) -> Any:
    """The model of a run, or the group of them where its SAE is of several.

    Args:
        cfg: the run's config.
        given: a model to use instead, or all of them in a list; None to load what the config names.
        load: loads a model of the run's kind by name.

    Raises:
        ValueError: when the names contradict each other, or the models do not read the same tokens.
    """
    several = isinstance(given, (list, tuple)) or len(getattr(cfg.sae, "model_names", ())) > 1
    if several and cfg.compile_llm:
        raise ValueError(
            "compile_llm is for a run with one language model; leave it out for several."
        )
    if isinstance(given, (list, tuple)):
        return ModelGroup(given)
    if given is not None:
        return given
    names = getattr(cfg.sae, "model_names", None) or [cfg.model_name]
    if names[0] != cfg.model_name:
        raise ValueError(
            f"model_name={cfg.model_name!r} is not the first of model_names={names}; leave "
            "model_name out."
        )
    models = [load(name) for name in names]
    return models[0] if len(models) == 1 else ModelGroup(models)
