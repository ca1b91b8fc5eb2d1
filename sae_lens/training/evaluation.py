"""Evaluations during training: what the trainer expects of one, and the usual one.

The trainer gets an evaluator passed in. Whoever builds a trainer on a language model by hand gets
the one below; it finds `sae_lens.evals` by name when it first runs, because that module stands
above this layer and is free to import it.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from sae_lens.activations.datasets_loading import load_text_dataset
from sae_lens.training.sources import ActivationScaler


class Evaluator(Protocol):
    """Measures an SAE in the middle of training."""

    def __call__(self, sae: Any, data_provider: Any, scaler: ActivationScaler) -> dict[str, Any]:
        """Numbers, or groups of numbers, to log."""
        ...


class InModelEvaluator:
    """Runs `run_evals` with the SAE in its language model, on the same tokens every time.

    They are tokenised once and are no part of the training data where the config names other data
    (`eval_dataset_path`) or holds rows out (`eval_held_out_rows`); otherwise they are read from the
    start of the training data, on a stream of their own.

    Args:
        model: the language model.
        cfg: the run's config.
    """

    def __init__(self, model: Any, cfg: Any) -> None:
        self.model = model
        self.cfg = cfg
        self._eval_config: Any = None
        self._evaluate: Evaluator | None = None

    @property
    def eval_config(self) -> Any:
        """Which metrics are computed, on how many batches; made from the config by default."""
        if self._eval_config is None:
            self._eval_config = eval_config_of(self.cfg, _evals().EvalConfig)
        return self._eval_config

    @eval_config.setter
    def eval_config(self, value: Any) -> None:
        self._eval_config = value
        self._evaluate = None

    def prepare(self, data_provider: Any) -> None:
        """Tokenise the held-out data, if there are any; the first evaluation does so otherwise.

        Raises:
            ValueError: when they hold no prompt.
        """
        if self._evaluate is None:
            rows = self._held_out_rows(data_provider)
            self._evaluate = (
                self._on_training_data(data_provider)
                if rows is None
                else self._on_held_out(rows, data_provider)
            )

    def __call__(self, sae: Any, data_provider: Any, scaler: ActivationScaler) -> dict[str, Any]:
        """The metrics of `run_evals`, in its groups. The training stream is left where it is."""
        self.prepare(data_provider)
        assert self._evaluate is not None
        return self._evaluate(sae, data_provider, scaler)

    def _held_out_rows(self, data_provider: Any) -> Any:
        path = getattr(self.cfg, "eval_dataset_path", None)
        if path is not None:
            return load_text_dataset(
                path,
                split=self.cfg.eval_dataset_split,
                streaming=self.cfg.streaming,
                trust_remote_code=self.cfg.dataset_trust_remote_code,
            )
        return data_provider.held_out if getattr(self.cfg, "eval_held_out_rows", 0) else None

    def _on_held_out(self, rows: Any, data_provider: Any) -> Evaluator:
        cfg = self.cfg
        batch_size = cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts
        held_out_evaluation = importlib.import_module("sae_lens.held_out_evaluation")
        return held_out_evaluation.HeldOutEvaluator.from_dataset(
            self.model,
            rows,
            context_size=cfg.context_size,
            n_prompts=cfg.n_eval_batches * batch_size,
            prepend_bos=cfg.prepend_bos,
            eval_config=self.eval_config,
            batch_size_prompts=batch_size,
            ignore_tokens=_excluded_ids(data_provider),
            model_kwargs=cfg.model_kwargs,
            seqpos_slice=cfg.seqpos_slice,
        )

    def _on_training_data(self, data_provider: Any) -> Evaluator:
        open_stream = getattr(data_provider, "evaluation_stream", None)
        stream = data_provider if open_stream is None else open_stream()

        def evaluate(sae: Any, data_provider: Any, scaler: ActivationScaler) -> dict[str, Any]:
            if stream is not data_provider:
                stream.reset_input_dataset()
                stream.estimated_norm_scaling_factor = scaler.scaling_factor
            metrics, _ = _evals().run_evals(
                sae=sae,
                activation_store=stream,
                model=self.model,
                eval_config=self.eval_config,
                model_kwargs=self.cfg.model_kwargs,
                ignore_tokens=_excluded_ids(data_provider),
            )
            return metrics

        return evaluate


def _excluded_ids(data_provider: Any) -> set[int]:
    excluded = getattr(data_provider, "exclude_special_tokens", None)
    return set() if excluded is None else set(excluded.tolist())


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
