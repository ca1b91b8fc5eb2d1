"""Config dicts of every age, brought to one shape: flat keys, with leftover metadata beside them.

One step per change that a release made, each doing nothing to configs that are newer:

    rename_legacy_keys      up to 3.x: hook_point, hook_point_layer, activation_fn, ...
    _settle_normalization   3.x: True and False; foreign formats: null
    _lift_metadata          6.x: facts under `metadata`, which flat configs have at top level
    _settle_topk            6.x: `k` at top level; 5.x: `activation_fn_kwargs`

`handle_config_defaulting` then fills in what files of any age may leave out. What we write is the
union of the last two ages, so that the original's readers of both find what they look for.
"""

from __future__ import annotations

from typing import Any

from sae_lens.hook_names import layer_of

LEGACY_KEYS = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn": "activation_fn_str",
}

# What `metadata` of a nested config may say about fields that flat configs have at top level.
METADATA_FIELDS = (
    "model_name",
    "hook_name",
    "hook_layer",
    "hook_head_index",
    "prepend_bos",
    "dataset_path",
    "dataset_trust_remote_code",
    "context_size",
    "neuronpedia_id",
    "model_from_pretrained_kwargs",
    "seqpos_slice",
    "sae_lens_training_version",
)

_DEFAULTS: dict[str, Any] = {
    "prepend_bos": True,
    "dataset_trust_remote_code": True,
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "sae_lens_training_version": None,
    "architecture": "standard",
    "neuronpedia_id": None,
    "normalize_activations": "none",
    "device": "cpu",
}


_MAY_BE_NONE = ("neuronpedia_id", "sae_lens_training_version", "dataset_trust_remote_code")


def rename_legacy_keys(config_dict: dict[str, Any]) -> dict[str, Any]:
    """A copy under today's names; where both spellings are present the new one wins."""
    renamed: dict[str, Any] = {}
    for key, value in config_dict.items():
        new_key = LEGACY_KEYS.get(key, key)
        if new_key != key and new_key in config_dict:
            continue
        renamed[new_key] = value
    return renamed


def is_nested_config(config_dict: dict[str, Any]) -> bool:
    """Whether the dict is of the 6.x kind, which keeps facts under `metadata`."""
    return isinstance(config_dict.get("metadata"), dict)


def flatten_config(config_dict: dict[str, Any]) -> dict[str, Any]:
    """A copy with today's flat keys at top level; the argument is left alone.

    Values under `metadata` fill top-level keys that are missing; a nested topk config's `k` becomes
    the activation function's argument; the layer is read from the hook's name.
    """
    flat = rename_legacy_keys(config_dict)
    _settle_normalization(flat)
    if is_nested_config(flat):
        _lift_metadata(flat)
    _settle_topk(flat)
    if flat.get("seqpos_slice", ()) is None:
        flat["seqpos_slice"] = (None,)
    return flat


def _settle_normalization(flat: dict[str, Any]) -> None:
    flat["normalize_activations"] = _normalization_name(flat.get("normalize_activations", "none"))


def _lift_metadata(flat: dict[str, Any]) -> None:
    """Facts under `metadata` fill missing top-level keys; what is then missing gets a default."""
    metadata = flat["metadata"]
    for name in METADATA_FIELDS:
        if name not in flat and name in metadata:
            flat[name] = metadata[name]
    if flat.get("k") is not None and "activation_fn_str" not in flat:
        flat["activation_fn_str"] = "topk"
    flat.setdefault("activation_fn_str", "relu")
    hook_name = flat.get("hook_name") or ""
    flat["hook_name"] = hook_name
    if flat.get("hook_layer") is None:
        flat["hook_layer"] = layer_of(hook_name)
    for name in ("model_name", "hook_head_index", "context_size", "dataset_path"):
        flat.setdefault(name, None)
    for name, value in _DEFAULTS.items():
        if name not in flat or (flat[name] is None and name not in _MAY_BE_NONE):
            flat[name] = value
    if flat.get("model_from_pretrained_kwargs", {}) is None:
        flat["model_from_pretrained_kwargs"] = {}


def _settle_topk(flat: dict[str, Any]) -> None:
    """A config that means topk says so in both ways: by activation function and its `k`.

    Files name one of them. Left alone, `architecture: topk` with the default activation would
    silently load as a dense ReLU SAE.
    """
    kwargs = flat.get("activation_fn_kwargs") or {}
    k = kwargs.get("k", flat.get("k"))
    means_topk = flat.get("architecture") == "topk" or flat.get("activation_fn_str") == "topk"
    if means_topk and k is not None:
        flat["activation_fn_str"] = "topk"
        flat["activation_fn_kwargs"] = {**kwargs, "k": k}


def handle_config_defaulting(cfg_dict: dict[str, Any]) -> dict[str, Any]:
    """Fill in what older files leave out; mutates and returns `cfg_dict`."""
    for name, value in _DEFAULTS.items():
        cfg_dict.setdefault(name, value)
    cfg_dict.setdefault("activation_fn_str", cfg_dict.get("activation_fn", "relu"))
    _settle_normalization(cfg_dict)
    _settle_topk(cfg_dict)
    return cfg_dict


def _normalization_name(value: Any) -> str:
    """3.x said True or False; the Gemma Scope loader says None."""
    if isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    return "none" if value is None else str(value)
