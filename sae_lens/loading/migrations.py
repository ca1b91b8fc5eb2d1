"""Config dicts of every age, brought to one shape: flat keys, with leftover metadata beside them.

Ages: 2.x and 3.x wrote whole runner configs (`hook_point`, boolean `normalize_activations`), 4.x
and 5.x flat configs, 6.x nested ones (`metadata`). What we write is the union of the last two.
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
_FACTS = (
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
    flat["normalize_activations"] = _normalization_name(flat.get("normalize_activations", "none"))
    if flat.get("seqpos_slice", ()) is None:
        flat["seqpos_slice"] = (None,)
    if not is_nested_config(flat):
        return flat
    metadata = flat["metadata"]
    for name in _FACTS:
        if name not in flat and name in metadata:
            flat[name] = metadata[name]
    if "activation_fn_str" not in flat:
        is_topk = flat.get("k") is not None or flat.get("architecture") == "topk"
        flat["activation_fn_str"] = "topk" if is_topk else "relu"
        if is_topk:
            flat["k"] = 100 if flat.get("k") is None else flat["k"]
            flat["activation_fn_kwargs"] = {"k": flat["k"]}
    hook_name = flat.get("hook_name") or ""
    flat["hook_name"] = hook_name
    if flat.get("hook_layer") is None:
        flat["hook_layer"] = layer_of(hook_name)
    for name in ("model_name", "hook_head_index", "context_size", "dataset_path"):
        flat.setdefault(name, None)
    flat.setdefault("dataset_trust_remote_code", None)
    for name, value in _DEFAULTS.items():
        flat.setdefault(name, value)
    if flat.get("seqpos_slice", ()) is None:
        flat["seqpos_slice"] = (None,)
    if flat.get("model_from_pretrained_kwargs", {}) is None:
        flat["model_from_pretrained_kwargs"] = {}
    return flat


def handle_config_defaulting(cfg_dict: dict[str, Any]) -> dict[str, Any]:
    """Fill in what older files leave out; mutates and returns `cfg_dict`."""
    for name, value in _DEFAULTS.items():
        cfg_dict.setdefault(name, value)
    cfg_dict.setdefault("activation_fn_str", cfg_dict.get("activation_fn", "relu"))
    cfg_dict["normalize_activations"] = _normalization_name(cfg_dict["normalize_activations"])
    return cfg_dict


def _normalization_name(value: Any) -> str:
    """3.x said True or False; the Gemma Scope loader says None."""
    if isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    return "none" if value is None else str(value)
