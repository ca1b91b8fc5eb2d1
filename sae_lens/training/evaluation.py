"""Evaluations during training: what the trainer expects of one, and the usual one.

The trainer gets an evaluator passed in. Whoever builds a trainer on a language model by hand gets
the one below; it finds `sae_lens.evals` by name when it first runs, because that module stands
above this layer and is free to import it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from sae_lens.activations.datasets_loading import load_text_dataset
from sae_lens.training.sources import ActivationScaler


class Evaluator(Protocol):
    """Measures an SAE in the middle of training."""

    def __call__(self, sae: Any, data_provider: Any, scaler: ActivationScaler) -> dict[str, Any]:
        """Numbers, or groups of numbers, to log."""
        ...


class InModelEvaluator:
    """Runs `run_evals` with the SAE in its language model, on a token stream of its own.

    Args:
        model: the language model.
        eval_config: which metrics; made from `cfg` when first needed, when not given.
        cfg: the run's config.
        run_evals: the function; `sae_lens.evals.run_evals` when not given.
    """

    def __init__(
        self,
        model: Any,
        cfg: Any,
        eval_config: Any = None,
        run_evals: Callable[..., Any] | None = None,
    ) -> None:
        self.model = model
        self.cfg = cfg
        self._eval_config = eval_config
        self._run_evals = run_evals
        self._stream: Any = None

    @property
    def eval_config(self) -> Any:
        """Which metrics are computed, on how many batches."""
        if self._eval_config is None:
            self._eval_config = eval_config_of(self.cfg, _evals().EvalConfig)
        return self._eval_config

    @eval_config.setter
    def eval_config(self, value: Any) -> None:
        self._eval_config = value

    def __call__(self, sae: Any, data_provider: Any, scaler: ActivationScaler) -> dict[str, Any]:
        """The metrics of `run_evals`, in its groups. The training stream is left where it is."""
        if self._stream is None:
            self._stream = self._open_stream(data_provider)
        excluded = getattr(data_provider, "exclude_special_tokens", None)
        metrics, _ = (self._run_evals or _evals().run_evals)(
            sae=sae,
            activation_store=self._stream,
            model=self.model,
            eval_config=self.eval_config,
            model_kwargs=self.cfg.model_kwargs,
            ignore_tokens=set() if excluded is None else set(excluded.tolist()),
        )
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Where the token stream stands; empty before the first evaluation."""
        if self._stream is None or not hasattr(self._stream, "load_state_dict"):
            return {}
        return {"stream": self._stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any], data_provider: Any) -> None:
        """Go on from a `state_dict`, on a stream of `data_provider`."""
        self._stream = self._open_stream(data_provider)
        if self._stream is not data_provider:
            self._stream.load_state_dict(state["stream"])

    def _open_stream(self, data_provider: Any) -> Any:
        own_stream = getattr(data_provider, "evaluation_stream", None)
        if own_stream is None:
            return data_provider
        path = getattr(self.cfg, "eval_dataset_path", None)
        if path is None:
            return own_stream()
        split = self.cfg.eval_dataset_split
        return own_stream(
            load_text_dataset(path, split=split, streaming=getattr(self.cfg, "streaming", False))
        )


def eval_config_of(cfg: Any, eval_config_class: type[Any]) -> Any:
    """The evaluations during training that a run's config asks for."""
    return eval_config_class(
        batch_size_prompts=cfg.eval_batch_size_prompts,
        n_eval_reconstruction_batches=cfg.n_eval_batches,
        n_eval_sparsity_variance_batches=cfg.n_eval_batches,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_kl=False,
        compute_featurewise_weight_based_metrics=False,
    )


def _evals() -> Any:
    return importlib.import_module("sae_lens.evals")
