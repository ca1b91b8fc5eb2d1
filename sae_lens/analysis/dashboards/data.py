"""What a dashboard knows about features, as plain values that turn into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Passage:
    """A stretch of one context around a token on which the feature fires.

    Attributes:
        tokens: token ids, in order.
        activations: of the feature, one per token; 0 on tokens that were left out.
        peak: index in `tokens` of the token that the passage was chosen for.
        row: which context of the data it is from.
        position: where in that context the chosen token stands.
    """

    tokens: list[int]
    activations: list[float]
    peak: int
    row: int
    position: int

    @property
    def activation(self) -> float:
        """Of the token that the passage was chosen for."""
        return self.activations[self.peak]


@dataclass(frozen=True)
class Histogram:
    """How often the feature fires how strongly: counts of equal bins from 0 to `upper`."""

    upper: float
    counts: list[int]


@dataclass(frozen=True)
class LogitEffect:
    """What one unit of the feature adds to the logit of a token."""

    token: int
    value: float


@dataclass(frozen=True)
class Neighbor:
    """Another feature and the cosine between the two decoder directions."""

    feature: int
    cosine: float


@dataclass(frozen=True)
class FeatureRecord:
    """One feature.

    Attributes:
        index: which.
        density: share of the tokens on which it fires.
        l0_share: its share of the mean number of active features per token.
        mean_activation: over the tokens on which it fires.
        max_activation: over all tokens.
        histogram: of its positive activations.
        top: passages with the highest activations, from different contexts, highest first.
        quantiles: passages drawn evenly from all firings, in groups of falling activation; the
            first group is the strongest part of what the feature does, the last the weakest.
        raised: tokens whose logits it raises most, strongest first; empty where the decoder's
            output does not reach the unembedding directly.
        lowered: tokens whose logits it lowers most, strongest first.
        neighbors: features with the most similar decoder directions.
    """

    index: int
    density: float
    l0_share: float
    mean_activation: float
    max_activation: float
    histogram: Histogram
    top: list[Passage]
    quantiles: list[list[Passage]]
    raised: list[LogitEffect]
    lowered: list[LogitEffect]
    neighbors: list[Neighbor]


@dataclass(frozen=True)
class FeatureDashboardData:
    """All that a dashboard shows.

    Attributes:
        model_name: of the language model.
        hook_name: where the SAE reads.
        architecture: of the SAE.
        d_in: width of the activations.
        d_sae: number of features of the SAE.
        n_tokens: tokens that were counted.
        l0: mean number of active features per token, over all features.
        vocabulary: text of every token id that occurs in the records.
        features: in the order in which they were asked for.
        title: heading of the page.
    """

    model_name: str
    hook_name: str
    architecture: str
    d_in: int
    d_sae: int
    n_tokens: int
    l0: float
    vocabulary: dict[int, str]
    features: list[FeatureRecord] = field(repr=False)
    title: str = "Features"

    def feature(self, index: int) -> FeatureRecord:
        """The record of one feature.

        Raises:
            KeyError: It was not collected.
        """
        for record in self.features:
            if record.index == index:
                return record
        raise KeyError(f"Feature {index} was not collected; {len(self.features)} others were.")

    def text(self, passage: Passage) -> str:
        """The passage in words."""
        return "".join(self.vocabulary[token] for token in passage.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureDashboardData:
        """What `to_dict` gave, also after a trip through JSON."""
        values = dict(data)
        values["vocabulary"] = {int(token): text for token, text in data["vocabulary"].items()}
        values["features"] = [_record(record) for record in data["features"]]
        return cls(**values)


def _record(data: dict[str, Any]) -> FeatureRecord:
    values = dict(data)
    values["histogram"] = Histogram(**data["histogram"])
    values["top"] = [Passage(**passage) for passage in data["top"]]
    values["quantiles"] = [[Passage(**p) for p in group] for group in data["quantiles"]]
    values["raised"] = [LogitEffect(**effect) for effect in data["raised"]]
    values["lowered"] = [LogitEffect(**effect) for effect in data["lowered"]]
    values["neighbors"] = [Neighbor(**neighbor) for neighbor in data["neighbors"]]
    return FeatureRecord(**values)
