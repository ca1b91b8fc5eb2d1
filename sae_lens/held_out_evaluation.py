"""Evaluations of an SAE in training, on tokens that are the same every time."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from sae_lens import evals
from sae_lens.activations.model_adapters import model_device
from sae_lens.activations.token_source import TokenSource
from sae_lens.analysis.eval_config import EvalConfig, EvalResult
from sae_lens.analysis.eval_tokens import FixedTokens, check_held_out, first_prompts
from sae_lens.saes.base import SAE


class HeldOutEvaluator:
    """Judges SAEs on one fixed set of tokens: the same numbers for the same SAE, whenever it runs.

    Pass it to a trainer as `evaluator`. Hold rows out of the training data with `split_held_out`.

    Args:
        tokens: prompts, [prompts, context].
        model: the language model.
        eval_config: what to compute (batch counts are derived from the tokens); by default
            cross-entropy, shrinkage, sparsity and variance.
        batch_size_prompts: prompts per forward pass.
        ignore_tokens: see `run_evals`.
        model_kwargs: for every forward pass.
        seqpos_slice: the positions to judge; by default those of the SAE.

    Raises:
        ValueError: when there are no tokens, or ids outside of the model's vocabulary.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "prompts pos"],
        model: Any,
        eval_config: EvalConfig | None = None,
        batch_size_prompts: int = 8,
        ignore_tokens: Collection[int | None] = (),
        model_kwargs: Mapping[str, Any] | None = None,
        seqpos_slice: tuple[int | None, ...] | None = None,
    ):
        check_held_out(tokens, model)
        self.tokens = tokens.clone()
        self.model = model
        self.eval_config = eval_config or EvalConfig(
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        )
        self.batch_size_prompts = min(batch_size_prompts, len(tokens))
        self.ignore_tokens = frozenset(ignore_tokens)
        self.model_kwargs = dict(model_kwargs or {})
        self.seqpos_slice = seqpos_slice

    @classmethod
    def from_dataset(
        cls,
        model: Any,
        dataset: Any,
        context_size: int,
        n_prompts: int,
        prepend_bos: bool = True,
        disable_concat_sequences: bool = False,
        dataset_trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> HeldOutEvaluator:
        """Tokenise the first `n_prompts` prompts of a dataset, once.

        Args:
            model: supplies the tokenizer for raw text.
            dataset: a dataset or a path to one; tokenised or text.
            context_size: tokens per prompt.
            n_prompts: how many; fewer, with a warning, when the data hold fewer.
            prepend_bos: see `ActivationsStore`.
            disable_concat_sequences: see `ActivationsStore`.
            dataset_trust_remote_code: see `ActivationsStore`.
            kwargs: further arguments of `HeldOutEvaluator`.

        Raises:
            ValueError: when the data hold no prompt of that length.
        """
        source = TokenSource(
            model,
            dataset,
            streaming=True,
            context_size=context_size,
            store_batch_size_prompts=1,
            total_training_tokens=0,
            prepend_bos=prepend_bos,
            device="cpu",
            dataset_trust_remote_code=dataset_trust_remote_code,
            disable_concat_sequences=disable_concat_sequences,
        )
        return cls(first_prompts(source, n_prompts), model, **kwargs)

    def evaluate(self, sae: SAE, norm_scaling_factor: float | None = None) -> EvalResult:
        """Judge an SAE.

        Args:
            sae: any SAE of the model.
            norm_scaling_factor: what activations are multiplied by for an SAE in training that
                wants scaled ones; None once it is folded in.
        """
        tokens = self.tokens.to(model_device(self.model))
        store = FixedTokens(tokens, self.batch_size_prompts, self.seqpos_slice)
        store.estimated_norm_scaling_factor = norm_scaling_factor
        n_batches = math.ceil(len(tokens) / self.batch_size_prompts)
        config = replace(
            self.eval_config,
            batch_size_prompts=self.batch_size_prompts,
            n_eval_reconstruction_batches=n_batches,
            n_eval_sparsity_variance_batches=n_batches,
        )
        result = evals.run_evals(
            sae,
            store,  # type: ignore[arg-type]
            self.model,
            config,
            model_kwargs=self.model_kwargs,
            ignore_tokens=self.ignore_tokens,
        )
        # The last batch may be short: count what there is.
        for name in result.metrics["token_stats"]:
            result.metrics["token_stats"][name] = tokens.numel()
        return result

    def __call__(self, sae: SAE, data_provider: Any = None, scaler: Any = None) -> dict[str, Any]:
        """The groups of metrics, as a trainer's evaluator. The data provider is not touched."""
        return self.evaluate(sae, getattr(scaler, "scaling_factor", None)).metrics
