"""Which settings a run may be given anew when it goes on from a checkpoint, and which not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from sae_lens.saes.files import jsonable
from sae_lens.training.features import TrainingFeatures

# Settings that do not change what is computed. docs/resumption.md lists them.
MAY_DIFFER = frozenset({
    # what is logged, and where
    "log_to_wandb", "log_activations_store_to_wandb", "log_optimizer_state_to_wandb",
    "log_weights_to_wandb", "log_to_jsonl", "logger", "wandb_project", "wandb_id", "wandb_entity",
    "run_name", "wandb_log_frequency", "eval_every_n_wandb_logs", "n_eval_batches",
    "eval_batch_size_prompts", "eval_dataset_path", "eval_dataset_split",
    "dead_feature_threshold", "verbose",
    # where things lie
    "checkpoint_path", "output_path", "cached_activations_path", "from_pretrained_path",
    "dataset_trust_remote_code", "act_store_device",
    # when checkpoints are made, and what happens when something fails
    "n_checkpoints", "checkpoint_every_minutes", "keep_last", "keep_best_metric", "keep_best_mode",
    "save_final_checkpoint", "resume", "resume_from_checkpoint", "on_nan",
    "loss_spike_factor", "auto_batch",
    "prefetch_batches", "prefetch_llm_batches", "evaluator",
    # how long to train
    "training_tokens", "finetuning_tokens", "total_training_samples",
    # without effect, or derived from fields that are compared
    "hook_eval", "is_dataset_tokenized", "streaming", "tokens_per_buffer", "sae_lens_version",
    "sae_lens_training_version", "expansion_factor",
})  # fmt: skip

# Checkpoints from before these were fields have them in the SAE's config alone.
_OF_THE_SAE = ("hook_name_out", "d_out")

# Another device of the same type computes the same.
_DEVICES = ("device", "llm_device")

_FEATURE_NAMES = {f.name for f in fields(TrainingFeatures)}


def differing_fields(saved: Mapping[str, Any], cfg: Any) -> dict[str, tuple[Any, Any]]:
    """Fields that change results and differ: name -> (in the checkpoint, in the config)."""
    now = json.loads(json.dumps(jsonable(cfg.to_dict())))
    differing: dict[str, tuple[Any, Any]] = {}
    for field in fields(cfg):
        name = field.name
        if name in MAY_DIFFER or name not in now:
            continue
        if name in _OF_THE_SAE and name not in saved:
            continue
        # A checkpoint from before there was such a field was made with what is now its default.
        default = field.default if field.default_factory is MISSING else field.default_factory()
        before, after = saved.get(name, jsonable(default)), now[name]
        if name in _DEVICES:
            before, after = _device_type(before), _device_type(after)
        elif name == "sae":
            before, after = _without_facts(before), _without_facts(after)
        elif name == "saes":
            before, after = (
                {key: _without_facts(sae) for key, sae in dict(saes).items()}
                for saes in (before, after)
            )
        elif name == "features":
            before, after = _differing_features(before, after)
        if before != after:
            differing[name] = (before, after)
    return differing


def refuse_differences(saved: Mapping[str, Any], cfg: Any, checkpoint: Any) -> None:
    """`ValueError` naming every field in which a config may not differ from a checkpoint's.

    Args:
        saved: the config in the checkpoint, as plain values.
        cfg: the config of the run that is to go on.
        checkpoint: where the checkpoint is, for the message.
    """
    differing = differing_fields(saved, cfg)
    if not differing:
        return
    listed = "; ".join(
        f"{name} is {after!r}, in the checkpoint {before!r}"
        for name, (before, after) in differing.items()
    )
    raise ValueError(
        f"The run cannot go on from {checkpoint} with this config, because other results would "
        f"come of it: {listed}. Set these fields as in the checkpoint, or start a new run from its "
        "weights with from_pretrained_path."
    )


def _device_type(device: Any) -> Any:
    return device.split(":")[0] if isinstance(device, str) else device


def _without_facts(sae: Any) -> Any:
    """The SAE's config without what does not matter for training or stands in other fields."""
    if not isinstance(sae, dict):
        return sae
    dropped = {"device", "metadata", "sae_lens_training_version", "sae_lens_version"}
    return {name: value for name, value in sae.items() if name not in dropped | MAY_DIFFER}


def refuse_other_sae(saved: Any, sae_cfg: Any, checkpoint: Any) -> None:
    """`ValueError` naming what differs between an SAE's config and that of a checkpoint's SAE.

    Args:
        saved: the config in the checkpoint, as plain values; None in older ones.
        sae_cfg: that of the SAE that is to be trained on.
        checkpoint: where the checkpoint is, for the message.
    """
    if saved is None:
        return
    before, now = _without_facts(saved), _without_facts(jsonable(sae_cfg.to_dict()))
    now = json.loads(json.dumps(now))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        listed = "; ".join(
            f"{name} is {now.get(name)!r}, in the checkpoint {before.get(name)!r}" for name in names
        )
        raise ValueError(f"The SAE is not configured as the one in {checkpoint}: {listed}.")


def _differing_features(before: Any, after: Any) -> tuple[Any, Any]:
    """The training features in which two configs differ, as plain values; those of each SAE too."""
    whole = _whole_features(before), _whole_features(after)
    if not all(isinstance(features, dict) for features in whole):
        return whole
    names = [
        name
        for name in whole[0] | whole[1]
        if whole[0].get(name) != whole[1].get(name) and name != "checkpoint_spacing"
    ]
    return tuple({name: features.get(name) for name in names} for features in whole)  # type: ignore[return-value]


def _whole_features(features: Any) -> Any:
    """Training features with all of their fields, of which older configs have fewer.

    Those of several SAEs are by name. What cannot be read differs from everything else.
    """
    if not isinstance(features, dict):
        return TrainingFeatures().to_dict() if features is None else features
    try:
        if features.keys() & _FEATURE_NAMES or not features:
            return jsonable(TrainingFeatures.of(features).to_dict())
        return {name: _whole_features(of_one) for name, of_one in features.items()}
    except (TypeError, ValueError):
        return features
