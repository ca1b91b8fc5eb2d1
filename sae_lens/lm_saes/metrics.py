"""What a training run logs: sums over the steps since the last log, read and reset together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_lens.lm_saes.adapter import LossParts, SAEAdapter
from sae_lens.training.statistics import count_firing

# Features firing on more than, or less than, these shares of tokens are counted.
_ABOVE = {"above_1e-1": 1e-1, "above_1e-2": 1e-2}
_BELOW = {"below_1e-5": 1e-5, "below_1e-6": 1e-6, "below_1e-7": 1e-7}

_LOSSES = {
    "overall_loss": "loss",
    "mse_loss": "l_rec",
    "sparsity_loss": "l_s",
    "lp_loss": "l_p",
    "aux_loss": "l_aux",
}


class LossMetric:
    """Means of the loss and of its parts that are present."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps = 0

    def update(self, parts: LossParts) -> None:
        """Take a step in."""
        self.steps += 1
        for label, name in _LOSSES.items():
            part = getattr(parts, name)
            if part is not None:
                self.sums[label] = self.sums.get(label, 0.0) + part.item()

    def compute(self, adapter: SAEAdapter) -> dict[str, float]:
        """The values since the last call."""
        values = {f"losses/{label}": total / self.steps for label, total in self.sums.items()}
        self.__init__()
        return values


class FiringMetric:
    """How often features fire, how many at once, and how strongly."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None
        self.tokens = 0
        self.total = 0.0

    @torch.no_grad()
    def update(self, parts: LossParts) -> None:
        """Take a step in."""
        features = parts.feature_acts
        counts = count_firing(features).double()
        self.counts = counts if self.counts is None else self.counts + counts
        self.tokens += len(features)
        self.total += features.sum().item()

    def compute(self, adapter: SAEAdapter) -> dict[str, float]:
        """The values since the last call; the mean activation is that of features that fire."""
        if self.counts is None:
            return {}
        frequency = self.counts / max(self.tokens, 1)
        n_active = self.counts.sum().item()
        values = {f"sparsity/{name}": (frequency > x).sum().item() for name, x in _ABOVE.items()}
        values |= {f"sparsity/{name}": (frequency < x).sum().item() for name, x in _BELOW.items()}
        values["metrics/mean_feature_act"] = self.total / max(n_active, 1)
        values["metrics/l0"] = n_active / max(self.tokens, 1)
        self.__init__()
        return values


class ReconstructionMetric:
    """Explained variance and errors."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.tokens = 0

    @torch.no_grad()
    def update(self, parts: LossParts) -> None:
        """Take a step in."""
        label, recons = parts.label.float(), parts.reconstruction.float()
        squared = (recons - label).pow(2).sum(dim=-1)
        variance = (label - label.mean(dim=0)).pow(2).sum(dim=-1)
        tiny = torch.finfo(torch.float32).tiny
        self.tokens += len(label)
        for name, per_token in {
            "squared": squared,
            "variance": variance,
            "legacy": 1 - squared / variance.clamp(min=tiny),
            "error": squared.sqrt(),
            "ratio": squared.sqrt() / label.norm(dim=-1).clamp(min=tiny),
        }.items():
            self.sums[name] = self.sums.get(name, 0.0) + per_token.sum().item()

    def compute(self, adapter: SAEAdapter) -> dict[str, float]:
        """The values since the last call."""
        if not self.tokens:
            return {}
        sums, n = self.sums, self.tokens
        variance = sums["variance"] or 1.0
        self.__init__()
        return {
            "metrics/explained_variance": 1 - sums["squared"] / variance,
            "metrics/explained_variance_legacy": sums["legacy"] / n,
            "metrics/l2_norm_error": sums["error"] / n,
            "metrics/l2_norm_error_ratio": sums["ratio"] / n,
        }


class GradientMetric:
    """The largest gradient norms."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def observe(self, norm: Tensor, clip: float) -> None:
        """Take in the norm per root of non-zero entries, before it is clipped to `clip`."""
        value = norm.item()
        clipped = min(value, clip) if clip > 0 else value
        for name, seen in {
            "metrics/gradient_norm_before_clipping": value,
            "metrics/gradient_norm_per_param": clipped,
        }.items():
            self.largest[name] = max(self.largest.get(name, 0.0), seen)

    def update(self, parts: LossParts) -> None:
        """Losses say nothing about gradients."""

    def compute(self, adapter: SAEAdapter) -> dict[str, float]:
        """The values since the last call."""
        values, self.largest = self.largest, {}
        return values


class WeightMetric:
    """Norms of the weights, k, thresholds: as they are when asked."""

    def update(self, parts: LossParts) -> None:
        """Losses say nothing about weights."""

    def compute(self, adapter: SAEAdapter) -> dict[str, float]:
        """The present values."""
        return adapter.log_statistics()


def all_metrics() -> list[Any]:
    """One of each."""
    return [LossMetric(), FiringMetric(), ReconstructionMetric(), GradientMetric(), WeightMetric()]
