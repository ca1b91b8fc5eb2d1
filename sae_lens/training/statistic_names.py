"""The names under which callers of a trainer know its counters and firing statistics."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sae_lens.training.log_values import _log_feature_sparsity
from sae_lens.training.statistics import FiringStatistics


class FiringStatisticsNames:
    """Attributes of a trainer that stand for parts of its `statistics`."""

    statistics: FiringStatistics
    n_training_tokens: int

    @property
    def act_freq_scores(self) -> Float[Tensor, " d_sae"]:
        """On how many tokens of the sampling window each feature fired."""
        return self.statistics.firing_counts

    @act_freq_scores.setter
    def act_freq_scores(self, value: Tensor) -> None:
        self.statistics.firing_counts = value

    @property
    def n_forward_passes_since_fired(self) -> Float[Tensor, " d_sae"]:
        """Steps since each feature last fired."""
        return self.statistics.steps_since_fired

    @n_forward_passes_since_fired.setter
    def n_forward_passes_since_fired(self, value: Tensor) -> None:
        self.statistics.steps_since_fired = value

    @property
    def n_frac_active_tokens(self) -> int:
        """Tokens in the sampling window so far."""
        return self.statistics.n_tokens

    @n_frac_active_tokens.setter
    def n_frac_active_tokens(self, value: int) -> None:
        self.statistics.n_tokens = value

    @property
    def n_training_samples(self) -> int:
        """The same as `n_training_tokens`."""
        return self.n_training_tokens

    @property
    def feature_sparsity(self) -> Float[Tensor, " d_sae"]:
        """Share of the window's tokens on which each feature fired; zeros in an empty window."""
        return self.statistics.densities

    @property
    def log_feature_sparsity(self) -> Float[Tensor, " d_sae"]:
        """log10 of the firing densities, on the CPU."""
        return _log_feature_sparsity(self.feature_sparsity)
