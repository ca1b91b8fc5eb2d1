"""Neuronpedia: opening dashboards, fetching features, lists, and automatic explanations.

A feature's page is `neuronpedia.org/{model}/{layer}-{sae_type}/{feature_id}`; an SAE knows the
first two parts as `cfg.neuronpedia_id`. Importing this module touches neither the network nor
environment files; the explainer package (automated-interpretability) is imported only by the
functions that explain.
"""

from __future__ import annotations

import json
import logging
import os
import urllib.parse
import webbrowser
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sae_lens.analysis.autointerp import AutointerpRun, simulate_and_score

if TYPE_CHECKING:
    import requests

    from sae_lens.saes.base import SAE

logger = logging.getLogger(__name__)

__all__ = [
    "NanAndInfReplacer",
    "NeuronpediaActivation",
    "NeuronpediaFeature",
    "autointerp_neuronpedia_features",
    "get_neuronpedia_feature",
    "get_neuronpedia_quick_list",
    "make_neuronpedia_list_with_features",
    "open_neuronpedia_feature_dashboard",
    "simulate_and_score",
    "sleep_identity",
    "test_key",
]

NEURONPEDIA_DOMAIN = "https://neuronpedia.org"

# What stands for numbers that JSON has no name for.
POSITIVE_INF_REPLACEMENT = 9999
NEGATIVE_INF_REPLACEMENT = -9999
NAN_REPLACEMENT = 0
OTHER_INVALID_REPLACEMENT = -99999

# Models that take structured conversations, as the explainer package asks for.
HARMONY_V4_MODELS = [
    "gpt-3.5-turbo",
    "gpt-4",
    "gpt-4o",
    "gpt-4-turbo",
    "gpt-4o-2024-05-13",
    "gpt-4-1106-preview",
    "gpt-4-turbo-2024-04-09",
]

REQUEST_TIMEOUT_S = 60

T = TypeVar("T")


def NanAndInfReplacer(value: str) -> float:
    """For `json.loads(..., parse_constant=...)`: a finite number instead of NaN and infinities."""
    replacements = {
        "-Infinity": NEGATIVE_INF_REPLACEMENT,
        "Infinity": POSITIVE_INF_REPLACEMENT,
        "NaN": NAN_REPLACEMENT,
    }
    return float(replacements.get(value, NAN_REPLACEMENT))


def open_neuronpedia_feature_dashboard(sae: SAE, index: int) -> None:
    """Open the page of feature `index` in a browser; warns and opens nothing without an id."""
    neuronpedia_id = sae.cfg.neuronpedia_id
    if neuronpedia_id is None:
        logger.warning(
            "This SAE has no neuronpedia_id in its config, so there is no page to open for feature "
            "%s. Set sae.cfg.neuronpedia_id to something like 'gpt2-small/8-res-jb'.",
            index,
        )
        return
    webbrowser.open(f"{NEURONPEDIA_DOMAIN}/{neuronpedia_id}/{index}")


def get_neuronpedia_quick_list(sae: SAE, features: list[int], name: str = "temporary_list") -> str:
    """Open a temporary list of features in a browser and return its URL.

    Raises:
        AssertionError: when the SAE's config has no `neuronpedia_id`.
    """
    neuronpedia_id = sae.cfg.neuronpedia_id
    if neuronpedia_id is None:
        message = (
            "This SAE has no neuronpedia_id in its config; a quick list needs one such as "
            "'gpt2-small/8-res-jb'."
        )
        logger.warning(message)
        raise AssertionError(message)
    layer = neuronpedia_id.split("/")[1]
    entries = [
        {"modelId": sae.cfg.model_name, "layer": layer, "index": str(feature)}
        for feature in features
    ]
    quoted_name = urllib.parse.quote(name)
    quoted_features = urllib.parse.quote(json.dumps(entries))
    url = f"{NEURONPEDIA_DOMAIN}/quick-list/?name={quoted_name}&features={quoted_features}"
    webbrowser.open(url)
    return url


def get_neuronpedia_feature(
    feature: int, layer: int, model: str = "gpt2-small", dataset: str = "res-jb"
) -> dict[str, Any]:
    """What Neuronpedia knows of one feature, with `index` as an int.

    Raises:
        RuntimeError: when the server answers with an error, or with something that is not JSON.
    """
    url = f"{NEURONPEDIA_DOMAIN}/api/feature/{model}/{layer}-{dataset}/{feature}"
    answer = _request("GET", url)
    if not isinstance(answer, dict) or "index" not in answer:
        raise RuntimeError(
            f"{url} gave no feature ({str(answer)[:200]}); check model, layer, dataset and feature."
        )
    answer["index"] = int(answer["index"])
    return answer


def _request(method: str, url: str, **kwargs: Any) -> Any:
    """The JSON that `url` answers; `RuntimeError` for any other status than success."""
    response = _send(method, url, **kwargs)
    if not response.ok:
        hint = {
            401: "check the API key",
            403: "check the API key",
            404: "check the names in the address",
            429: "too many requests, wait and try again",
        }.get(response.status_code, "try again later")
        raise RuntimeError(
            f"{method} {url} failed with status {response.status_code} "
            f"({response.text[:200]}); {hint}."
        )
    try:
        return json.loads(response.text, parse_constant=NanAndInfReplacer)
    except ValueError as error:
        raise RuntimeError(f"{url} did not answer with JSON: {response.text[:200]!r}") from error


def _send(method: str, url: str, **kwargs: Any) -> requests.Response:
    import requests

    return requests.request(method, url, timeout=REQUEST_TIMEOUT_S, **kwargs)


@dataclass
class NeuronpediaActivation:
    """One text on which a feature was recorded."""

    id: str
    tokens: list[str]
    act_values: list[float]


@dataclass
class NeuronpediaFeature:
    """A feature as Neuronpedia names it, with what has been found out about it."""

    modelId: str
    layer: int
    dataset: str
    feature: int
    description: str = ""
    activations: list[NeuronpediaActivation] | None = None
    autointerp_explanation: str = ""
    autointerp_explanation_score: float = 0.0

    def has_activating_text(self) -> bool:
        """Whether the feature is positive on any token of any recorded text."""
        return any(max(a.act_values, default=0) > 0 for a in self.activations or [])

    def __str__(self) -> str:
        return f"{self.modelId}@{self.layer}-{self.dataset}:{self.feature}"


def make_neuronpedia_list_with_features(
    api_key: str,
    list_name: str,
    features: list[NeuronpediaFeature],
    list_description: str | None = None,
    open_browser: bool = True,
) -> str:
    """Make a list on Neuronpedia; returns its URL, opened in a browser unless told otherwise.

    Raises:
        RuntimeError: when the server refuses, or its answer holds no URL.
    """
    body = {
        "name": list_name,
        "description": list_description,
        "features": [
            {
                "modelId": feature.modelId,
                "layer": f"{feature.layer}-{feature.dataset}",
                "index": feature.feature,
                "description": feature.description,
            }
            for feature in features
        ],
    }
    url = f"{NEURONPEDIA_DOMAIN}/api/list/new-with-features"
    answer = _request("POST", url, json=body, headers={"x-api-key": api_key})
    if not isinstance(answer, dict) or not answer.get("url"):
        raise RuntimeError(f"The list was not made: {url} answered {str(answer)[:200]}.")
    if open_browser:
        webbrowser.open(answer["url"])
    return answer["url"]


def test_key(api_key: str) -> None:
    """Check a Neuronpedia API key.

    Raises:
        RuntimeError: when the server does not accept it.
    """
    response = _send("POST", f"{NEURONPEDIA_DOMAIN}/api/test", json={"apiKey": api_key})
    if response.status_code != 200:
        raise RuntimeError(
            f"Neuronpedia does not accept this API key (status {response.status_code}); look it up "
            f"at {NEURONPEDIA_DOMAIN}/account."
        )


# Its name makes test collectors take it for a test.
test_key.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def sleep_identity(x: T) -> T:
    """Its argument: stands in where a function that waits is expected."""
    return x


async def autointerp_neuronpedia_features(
    features: list[NeuronpediaFeature],
    openai_api_key: str | None = None,
    autointerp_retry_attempts: int = 3,
    autointerp_score_max_concurrent: int = 20,
    neuronpedia_api_key: str | None = None,
    skip_neuronpedia_api_key_test: bool = False,
    do_score: bool = True,
    output_dir: str = "neuronpedia_outputs/autointerp",
    num_activations_to_use: int = 20,
    max_explanation_activation_records: int = 20,
    upload_to_neuronpedia: bool = True,
    autointerp_explainer_model_name: str = "gpt-4-1106-preview",
    autointerp_scorer_model_name: str | None = "gpt-3.5-turbo",
    save_to_disk: bool = True,
) -> None:
    """Explain features from their strongest texts, score the explanations, save and upload them.

    Explanations and scores are written into the given features. Method: Bills et al. 2023,
    "Language models can explain neurons in language models".

    Args:
        features: which ones; their activations are fetched from Neuronpedia.
        openai_api_key: falls back to the environment variable OPENAI_API_KEY.
        autointerp_retry_attempts: how often each request is tried.
        autointerp_score_max_concurrent: parallel requests while scoring.
        neuronpedia_api_key: needed for uploading.
        skip_neuronpedia_api_key_test: do not check that key first.
        do_score: simulate the feature from its explanation and correlate.
        output_dir: where one JSON line per feature goes.
        num_activations_to_use: texts per feature, strongest first.
        max_explanation_activation_records: how many of these the explainer sees.
        upload_to_neuronpedia: whether to send the explanations.
        autointerp_explainer_model_name: explains; one of `HARMONY_V4_MODELS`.
        autointerp_scorer_model_name: simulates; likewise.
        save_to_disk: whether to write `output_dir`.

    Raises:
        ValueError: for missing keys, unknown models, and features that are missing, have no
            activations, or never fire.
        ImportError: without the explainer package.
        RuntimeError: when a server refuses.
    """
    _set_openai_key(openai_api_key)
    if upload_to_neuronpedia and neuronpedia_api_key is None:
        raise ValueError(
            "Uploading needs a neuronpedia_api_key; give one or pass upload_to_neuronpedia=False."
        )
    _check_model(autointerp_explainer_model_name, "autointerp_explainer_model_name")
    if do_score:
        _check_model(autointerp_scorer_model_name, "autointerp_scorer_model_name")
    run = AutointerpRun(
        explainer_model=autointerp_explainer_model_name,
        scorer_model=autointerp_scorer_model_name or "",
        retries=autointerp_retry_attempts,
        max_concurrent=autointerp_score_max_concurrent,
        n_records_to_score=num_activations_to_use,
        n_records_to_explain=max_explanation_activation_records,
    )
    if neuronpedia_api_key is not None and not skip_neuronpedia_api_key_test:
        test_key(neuronpedia_api_key)

    for feature in features:
        _fetch_activations(feature, num_activations_to_use)
    for feature in features:
        await run.explain(feature)
        if do_score:
            await run.score(feature)
        record = _explanation_record(feature, run, do_score)
        if save_to_disk:
            _save_record(feature, record, output_dir)
        if upload_to_neuronpedia:
            _request(
                "POST",
                f"{NEURONPEDIA_DOMAIN}/api/explanation/new",
                json={"feature": record},
                headers={"x-api-key": neuronpedia_api_key},
            )
        logger.info("%s: %s", feature, feature.autointerp_explanation)


def _set_openai_key(openai_api_key: str | None) -> None:
    """Give the explainer package its key, which it reads from the environment."""
    if openai_api_key is not None:
        os.environ["OPENAI_API_KEY"] = openai_api_key
    elif not os.environ.get("OPENAI_API_KEY"):
        raise ValueError(
            "Explaining needs an OpenAI key: pass openai_api_key or set OPENAI_API_KEY in the "
            "environment."
        )


def _check_model(name: str | None, argument: str) -> None:
    if name not in HARMONY_V4_MODELS:
        raise ValueError(f"{argument} is {name!r}; allowed are {HARMONY_V4_MODELS}.")


def _fetch_activations(feature: NeuronpediaFeature, limit: int) -> None:
    answer = get_neuronpedia_feature(
        feature=feature.feature,
        layer=feature.layer,
        model=feature.modelId,
        dataset=feature.dataset,
    )
    if not answer.get("activations"):
        raise ValueError(f"Feature {feature} has no activations on Neuronpedia; leave it out.")
    feature.activations = [
        NeuronpediaActivation(id=a["id"], tokens=a["tokens"], act_values=a["values"])
        for a in answer["activations"]
    ]
    if not feature.has_activating_text():
        raise ValueError(f"Feature {feature} is dead: it is positive on no text. Leave it out.")
    feature.activations.sort(key=lambda a: max(a.act_values, default=0), reverse=True)
    del feature.activations[limit:]


def _explanation_record(
    feature: NeuronpediaFeature, run: AutointerpRun, scored: bool
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "modelId": feature.modelId,
        "layer": f"{feature.layer}-{feature.dataset}",
        "index": feature.feature,
        "explanation": feature.autointerp_explanation,
        "explanationScore": feature.autointerp_explanation_score,
        "explanationModel": run.explainer_model,
    }
    if scored:
        record["autointerpModel"] = run.scorer_model
    return record


def _save_record(feature: NeuronpediaFeature, record: dict[str, Any], output_dir: str) -> None:
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{feature.modelId}-{feature.layer}-{feature.dataset}_feature-{feature.feature}"
    path = Path(output_dir) / f"{name}_time-{time}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
