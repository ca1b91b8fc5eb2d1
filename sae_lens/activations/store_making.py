"""The ways to make a store: for a run, for a finished cache, and for an SAE.

A store of another kind of rows says what else it takes over: see `_settings_of_run` and
`_settings_of_sae`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sae_lens.activations.store_settings import (
    DEFAULT_TOTAL_TOKENS,
    settings_from_cache_config,
    settings_from_runner_config,
    settings_from_sae,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class StoreMaking:
    """The part of a store that makes one from configs. Its constructor is a subclass's."""

    cached_activations_path: str | None
    total_training_tokens: int
    hold_out: Callable[[int], None]
    _require_model_fits: Callable[[], None]

    @classmethod
    def _with_settings(cls, model: Any, **settings: Any) -> Self:
        build: Any = cls
        return build(model, **settings)

    @classmethod
    def from_cache_activations(cls, model: Any, cfg: Any) -> Self:
        """A store that reads the finished cache of a `CacheActivationsRunnerConfig`."""
        with warnings.catch_warnings():
            # The cache's rows are as long as its slice, and the tokens beside them are not read.
            warnings.filterwarnings("ignore", "The rows of the tokenised dataset", RuntimeWarning)
            return cls._with_settings(model, **settings_from_cache_config(cfg))

    @classmethod
    def from_config(cls, model: Any, cfg: Any, override_dataset: Any = None) -> Self:
        """A store for a training run, or for reading a cache when `cfg` is a cache runner's config.

        Raises:
            ValueError: when there is no dataset, or the model has no such hook or takes no prompts
                of that length; for several hooks, when the run's own is another than the first of
                them, or models are missing.
        """
        if hasattr(cfg, "new_cached_activations_path"):
            return cls.from_cache_activations(model, cfg)
        store = cls._with_settings(model, **cls._settings_of_run(model, cfg, override_dataset))
        if store.cached_activations_path is None:
            store._require_model_fits()
        store.hold_out(getattr(cfg, "eval_held_out_rows", 0))
        return store

    @classmethod
    def from_sae(
        cls,
        model: Any,
        sae: Any,
        context_size: int | None = None,
        dataset: Any = None,
        streaming: bool = True,
        store_batch_size_prompts: int = 8,
        n_batches_in_buffer: int = 8,
        train_batch_size_tokens: int = 4096,
        total_tokens: int = DEFAULT_TOTAL_TOKENS,
        device: str | torch.device = "cpu",
        *,
        dataset_trust_remote_code: bool | None = None,
        disable_concat_sequences: bool = False,
        seed: int | None = None,
    ) -> Self:
        """A store with the hook, width, dtype and data of an SAE; what is passed here comes first.

        Raises:
            ValueError: when the context size or the dataset is neither given nor known to the SAE.
        """
        settings = cls._settings_of_sae(model, sae, context_size, dataset)
        if dataset_trust_remote_code is not None:
            settings["dataset_trust_remote_code"] = dataset_trust_remote_code
        store = cls._with_settings(
            model,
            **settings,
            streaming=streaming,
            store_batch_size_prompts=store_batch_size_prompts,
            n_batches_in_buffer=n_batches_in_buffer,
            train_batch_size_tokens=train_batch_size_tokens,
            # The default stands for "many", not for a budget that data could fall short of.
            total_training_tokens=0 if total_tokens == DEFAULT_TOTAL_TOKENS else total_tokens,
            device=device,
            disable_concat_sequences=disable_concat_sequences,
            seed=seed,
        )
        store.total_training_tokens = total_tokens
        return store

    @classmethod
    def _settings_of_run(cls, model: Any, cfg: Any, override_dataset: Any) -> dict[str, Any]:
        """What this class takes over from the config of a run."""
        return settings_from_runner_config(model, cfg, override_dataset)

    @classmethod
    def _settings_of_sae(
        cls, model: Any, sae: Any, context_size: int | None, dataset: Any
    ) -> dict[str, Any]:
        """What this class takes over from an SAE."""
        return settings_from_sae(model, sae, context_size, dataset)
