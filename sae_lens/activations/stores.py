"""Which store serves the activations that an SAE needs: of one hook, of a pair, or of several."""

from __future__ import annotations

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


def with_other_models(model: Any, cfg: Any, load: Any) -> Any:
    """The run's model, or the group of them where the SAE is of several.

    Args:
        model: the first model, or all of them in a list.
        cfg: the run's config.
        load: loads a model of the run's kind by name.

    Raises:
        ValueError: when they do not read the same tokens, or their number is another.
    """
    names = getattr(cfg.sae, "model_names", None) or []
    if isinstance(model, (list, tuple)):
        model = ModelGroup(model)
    if isinstance(model, ModelGroup) or len(names) < 2:
        return model
    if names[0] != cfg.model_name:
        raise ValueError(
            f"model_name={cfg.model_name!r} is not the first of model_names={names}; leave "
            "model_name out."
        )
    return ModelGroup([model, *(load(name) for name in names[1:])])
