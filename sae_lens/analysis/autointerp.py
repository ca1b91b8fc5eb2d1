"""Explaining a feature by a language model from its strongest texts, and scoring the explanation.

Method: Bills et al. 2023, "Language models can explain neurons in language models". The work is
done by the package automated-interpretability, imported when something is explained.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Explainer:
    """The parts of the explainer package that are used here."""

    activation_record: Any
    calculate_max_activation: Callable[..., float]
    explainer: Any
    prompt_format: Any
    few_shot: Any
    simulator: Any
    uncalibrated: Any
    scoring: Any


def explainer_package() -> Explainer:
    """The installed explainer package.

    Raises:
        ImportError: naming the package when it is missing.
    """
    try:
        from neuron_explainer.activations.activation_records import (  # pyright: ignore[reportMissingImports]
            calculate_max_activation,
        )
        from neuron_explainer.activations.activations import (  # pyright: ignore[reportMissingImports]
            ActivationRecord,
        )
        from neuron_explainer.explanations import (  # pyright: ignore[reportMissingImports]
            calibrated_simulator,
            explainer,
            few_shot_examples,
            prompt_builder,
            scoring,
            simulator,
        )
    except ImportError as error:
        raise ImportError(
            "Explaining features needs the package automated-interpretability: "
            "pip install automated-interpretability"
        ) from error
    return Explainer(
        activation_record=ActivationRecord,
        calculate_max_activation=calculate_max_activation,
        explainer=explainer.TokenActivationPairExplainer,
        prompt_format=prompt_builder.PromptFormat.HARMONY_V4,
        few_shot=few_shot_examples.FewShotExampleSet.JL_FINE_TUNED,
        simulator=simulator.LogprobFreeExplanationTokenSimulator,
        uncalibrated=calibrated_simulator.UncalibratedNeuronSimulator,
        scoring=scoring,
    )


async def simulate_and_score(simulator: Any, activation_records: list[Any]) -> Any:
    """Score an explanation by how well it predicts activations on the given records.

    Args:
        simulator: a `NeuronSimulator` of the explainer package.
        activation_records: its `ActivationRecord`s.

    Returns:
        Its `ScoredSimulation`.
    """
    scoring = explainer_package().scoring
    return await scoring.simulate_and_score(simulator, activation_records)


@dataclass
class AutointerpRun:
    """What one call of `autointerp_neuronpedia_features` was asked to do."""

    explainer_model: str
    scorer_model: str
    retries: int
    max_concurrent: int
    n_records_to_score: int
    n_records_to_explain: int
    package: Explainer = field(default_factory=explainer_package)

    async def explain(self, feature: Any) -> None:
        """Fill in `autointerp_explanation`."""
        records = self._records(feature)[: self.n_records_to_explain]
        explainer = self.package.explainer(
            model_name=self.explainer_model,
            prompt_format=self.package.prompt_format,
            max_concurrent=1,
        )
        explanations = await _with_retries(
            self.retries,
            f"explain feature {feature}",
            lambda: explainer.generate_explanations(
                all_activation_records=records,
                max_activation=self.package.calculate_max_activation(records),
                num_samples=1,
            ),
        )
        if not explanations:
            raise RuntimeError(f"{self.explainer_model} gave no explanation for {feature}.")
        feature.autointerp_explanation = explanations[0].rstrip(".")

    async def score(self, feature: Any) -> None:
        """Fill in `autointerp_explanation_score`."""
        simulator = self.package.uncalibrated(
            self.package.simulator(
                self.scorer_model,
                feature.autointerp_explanation,
                json_mode=True,
                max_concurrent=self.max_concurrent,
                few_shot_example_set=self.package.few_shot,
                prompt_format=self.package.prompt_format,
            )
        )
        records = self._records(feature)[: self.n_records_to_score]
        scored = await _with_retries(
            self.retries,
            f"score feature {feature}",
            lambda: simulate_and_score(simulator, records),
        )
        score = scored.get_preferred_score()
        feature.autointerp_explanation_score = 0.0 if score is None or score != score else score

    def _records(self, feature: Any) -> list[Any]:
        return [
            self.package.activation_record(tokens=a.tokens, activations=a.act_values)
            for a in feature.activations or []
        ]


async def _with_retries(
    attempts: int, what: str, call: Callable[[], Awaitable[T]], longest_pause_s: float = 30.0
) -> T:
    """Await `call()` up to `attempts` times, with randomly growing pauses in between."""
    for attempt in range(1, attempts + 1):
        try:
            return await call()
        except Exception as error:
            if attempt == attempts:
                raise RuntimeError(f"Could not {what} in {attempts} attempts: {error}") from error
            logger.warning("Attempt %d to %s failed: %s", attempt, what, error)
            await asyncio.sleep(random.uniform(0, min(longest_pause_s, 2.0**attempt)))
    raise ValueError(f"autointerp_retry_attempts is {attempts}; it must be at least 1.")
