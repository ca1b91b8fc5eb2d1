"""What an `ActivationsStore` takes over from a run's config, a cache's config or an SAE.

Each function returns keyword arguments of `ActivationsStore`. Configs are read by attribute,
because they live in layers above this one.
"""

from __future__ import annotations

from typing import Any

import torch

from sae_lens.activations.datasets_loading import special_token_ids
from sae_lens.constants import dtype_name
from sae_lens.hook_names import layer_of

DEFAULT_TOTAL_TOKENS = 10**9  # of a store made for an SAE: no budget, just "many"


def settings_from_cache_config(cfg: Any) -> dict[str, Any]:
    """For reading a finished cache, from the config of the run that made it."""
    return {
        "cached_activations_path": cfg.new_cached_activations_path,
        "dtype": cfg.dtype,
        "hook_name": cfg.hook_name,
        "hook_layer": cfg.hook_layer,
        "context_size": sliced_length(cfg.context_size, cfg.seqpos_slice),
        "d_in": cfg.d_in,
        "n_batches_in_buffer": cfg.n_batches_in_buffer,
        "total_training_tokens": cfg.training_tokens,
        "store_batch_size_prompts": cfg.model_batch_size,
        "train_batch_size_tokens": cfg.model_batch_size,
        "seqpos_slice": (None,),
        "device": torch.device(cfg.device),
        "prepend_bos": False,
        "hook_head_index": None,
        "dataset": cfg.dataset_path,
        "streaming": False,
        "normalize_activations": "none",
    }


def settings_from_runner_config(model: Any, cfg: Any, override_dataset: Any) -> dict[str, Any]:
    """For training, from the config of the run.

    Raises:
        ValueError: when there is neither a dataset nor a path to one.
    """
    dataset = override_dataset if override_dataset is not None else cfg.dataset_path
    if isinstance(dataset, str) and not dataset:
        raise ValueError(
            "There is no dataset to train on: dataset_path is empty and no dataset was passed. Set "
            "dataset_path, or pass override_dataset."
        )
    same_names = (
        "streaming",
        "hook_name",
        "hook_layer",
        "hook_head_index",
        "context_size",
        "d_in",
        "n_batches_in_buffer",
        "store_batch_size_prompts",
        "train_batch_size_tokens",
        "prepend_bos",
        "normalize_activations",
        "dtype",
        "model_kwargs",
        "autocast_lm",
        "dataset_trust_remote_code",
        "seqpos_slice",
    )
    settings = {name: getattr(cfg, name) for name in same_names}
    excluded = getattr(cfg, "exclude_special_tokens", False)
    return {
        **settings,
        "dataset": dataset,
        "cached_activations_path": cfg.cached_activations_path
        if cfg.use_cached_activations
        else None,
        "total_training_tokens": cfg.training_tokens,
        "device": torch.device(cfg.act_store_device),
        "exclude_special_tokens": excluded_tokens(excluded, getattr(model, "tokenizer", None)),
        "seed": getattr(cfg, "seed", None),
        "activations_mixing_fraction": getattr(cfg, "activations_mixing_fraction", 0.5),
        "n_batches_for_norm_estimate": getattr(cfg, "n_batches_for_norm_estimate", 1000),
        "prefetch_batches": getattr(cfg, "prefetch_batches", 0),
    }


def settings_from_sae(
    model: Any, sae: Any, context_size: int | None, dataset: Any
) -> dict[str, Any]:
    """For looking at an SAE, from its config and the metadata written into that.

    Raises:
        ValueError: when the context size or the dataset is neither given nor known to the SAE.
    """
    context_size = context_size if context_size is not None else sae_fact(sae.cfg, "context_size")
    dataset = dataset if dataset is not None else sae_fact(sae.cfg, "dataset_path")
    for name, value in (("context_size", context_size), ("dataset", dataset)):
        if value is None or (isinstance(value, str) and not value):
            raise ValueError(
                f"The SAE's config does not say which {name} to use. Pass {name}= to "
                "ActivationsStore.from_sae."
            )
    hook_name = sae_fact(sae.cfg, "hook_name", "")
    slice_parts = sae_fact(sae.cfg, "seqpos_slice", (None,))
    excluded = sae_fact(sae.cfg, "exclude_special_tokens", False)
    return {
        "dataset": dataset,
        "context_size": context_size,
        "d_in": sae.cfg.d_in,
        "hook_name": hook_name,
        "hook_layer": sae_fact(sae.cfg, "hook_layer", layer_of(hook_name)),
        "hook_head_index": sae_fact(sae.cfg, "hook_head_index"),
        "prepend_bos": sae_fact(sae.cfg, "prepend_bos", True),
        "normalize_activations": sae_fact(sae.cfg, "normalize_activations", "none"),
        "dataset_trust_remote_code": sae_fact(sae.cfg, "dataset_trust_remote_code"),
        "dtype": dtype_name(sae.cfg.dtype),
        "seqpos_slice": tuple(slice_parts),
        "exclude_special_tokens": excluded_tokens(excluded, getattr(model, "tokenizer", None)),
    }


def sae_fact(cfg: Any, name: str, default: Any = None) -> Any:
    """A fact about an SAE: from its config's metadata when set there, else from the config."""
    for holder in (getattr(cfg, "metadata", None), cfg):
        value = getattr(holder, name, None)
        if value is not None:
            return value
    return default


def excluded_tokens(setting: bool | list[int] | torch.Tensor | None, tokenizer: Any) -> Any:
    """Token ids to leave out of training, as a long tensor, or None for none.

    Args:
        setting: False or None, a list of ids, or True for all special tokens of the tokenizer.
        tokenizer: the model's.

    Raises:
        ValueError: for True without a tokenizer.
    """
    if setting is None or setting is False:
        return None
    if setting is True:
        if tokenizer is None:
            raise ValueError(
                "exclude_special_tokens=True needs a model with a tokenizer, and this one has "
                "none. Give the token ids to exclude as a list."
            )
        return torch.tensor(special_token_ids(tokenizer), dtype=torch.long)
    return torch.as_tensor(setting, dtype=torch.long)


def sliced_length(context_size: int, seqpos_slice: tuple[int | None, ...] | None) -> int:
    """How many of `context_size` positions `slice(*seqpos_slice)` keeps; all of them for None."""
    if seqpos_slice is None:
        return context_size
    return len(range(context_size)[slice(*seqpos_slice)])
