"""Matching pursuit SAE: features are found one after the other, each on what is left to explain.

    r = x - b_dec; repeat: i = argmax_i (W_dec r)_i, a = relu((W_dec r)_i), f_i += a, r -= a w_i

Costa et al. 2025, "From Flat to Hierarchical: Extracting Sparse Representations with Matching
Pursuit" (arXiv:2506.03093). The encoder is the decoder's transpose. A token is done when the norm
of its residual is below `residual_threshold`, when nothing more correlates with it, after
`max_iterations` (d_in by default), or after a feature was chosen for the second time. The only loss
is the mean squared error; gradients pass through the values, not through the choices.

One trained on whitened activations `(x - m) M` pursues raw ones in the metric M: inner products and
norms are those of `r M` and `W_dec M`, with W_dec as it writes raw activations. Its files hold M as
`metric`; without that tensor the metric is the usual one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens.late_numbers import LateNumber
from sae_lens.number_kinds import is_whole_number
from sae_lens.registry import register_sae_class, register_sae_training_class
from sae_lens.saes.base import SAE
from sae_lens.saes.config import ArchitectureSAEConfig, ArchitectureTrainingSAEConfig
from sae_lens.saes.dead_features import may_look_at
from sae_lens.saes.training import TrainingSAE
from sae_lens.saes.training_step import TrainingEncoding, TrainStepInput
from sae_lens.saes.whitening import WHITENING
from sae_lens.whitening import Whitening


@dataclass(kw_only=True)
class MatchingPursuitSAEConfig(ArchitectureSAEConfig):
    """Config of a `MatchingPursuitSAE`.

    Attributes:
        residual_threshold: a token is explained when the norm of its residual is below this.
        max_iterations: most features of a token; None for d_in.
        stop_on_duplicate_support: a token is done after a feature was chosen a second time.
    """

    architecture: str = "matching_pursuit"
    residual_threshold: float = 0.01
    max_iterations: int | None = None
    stop_on_duplicate_support: bool = True

    nested_keys: ClassVar[tuple[str, ...]] = (
        "residual_threshold",
        "max_iterations",
        "stop_on_duplicate_support",
    )

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        most = self.max_iterations
        if most is not None and not (is_whole_number(most) and most >= 1):
            raise ValueError(
                f"max_iterations is {most}; it must be a whole number of at least 1, or None for "
                "the width of the activations."
            )
        if not self.residual_threshold >= 0:
            raise ValueError(
                f"residual_threshold is {self.residual_threshold}; a norm is at least 0."
            )


@dataclass(kw_only=True)
class MatchingPursuitTrainingSAEConfig(MatchingPursuitSAEConfig, ArchitectureTrainingSAEConfig):
    """Config of a `MatchingPursuitTrainingSAE`.

    The pursuit takes a share of `norm ** 2` of what it finds, so decoder rows that start at unit
    norm (`decoder_init_norm=1.0`) learn faster than those of the common default.
    """

    def __post_init__(self, metadata: Any, reshape_activations: str | None) -> None:
        super().__post_init__(metadata, reshape_activations)
        if self.normalize_activations == WHITENING and not self.apply_b_dec_to_input:
            raise ValueError(
                "normalize_activations='whitening' takes the mean out of activations, which a "
                "pursuit keeps in the decoder bias alone: set apply_b_dec_to_input=True."
            )


def matching_pursuit(
    x: Float[Tensor, "tokens d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    residual_threshold: float,
    max_iterations: int,
    stop_on_duplicate_support: bool,
) -> Float[Tensor, "tokens d_sae"]:
    """Features of each row of `x`, which is centred already.

    On the CPU the host ends with the last token that needs an iteration. Elsewhere it asks what the
    iteration before found, while the device works on that: one iteration more changes nothing.
    """
    features = x.new_zeros(x.shape[0], W_dec.shape[0])
    residual = x.clone()
    running = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    found: LateNumber | None = None
    for _ in range(max_iterations):
        running = running & (residual.norm(dim=-1) >= residual_threshold)
        if may_look_at(running) or torch.compiler.is_compiling():
            is_done = not bool(running.any())
        else:
            is_done = found is not None and not found.value()
            found = LateNumber(running.any())
        if is_done:
            break
        value, chosen = (residual @ W_dec.T).max(dim=-1)
        value = torch.relu(value).to(x.dtype)  # under autocast the product has another
        running = running & (value > 0)
        taken = features.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) != 0
        value = torch.where(running, value, torch.zeros_like(value)).unsqueeze(-1)
        features = features.scatter_add(-1, chosen.unsqueeze(-1), value)
        residual = residual - value * W_dec[chosen]
        if stop_on_duplicate_support:
            running = running & ~taken
    return features


class MatchingPursuitSAE(SAE):
    """See the module's text."""

    architecture = "matching_pursuit"

    def initialize_weights(self) -> None:
        """`W_dec` and `b_dec`; there is no encoder of its own."""
        self.W_dec = self._matrix(self.cfg.d_sae, self.cfg.d_in)
        self.b_dec = self._vector(self.cfg.d_in)
        self.metric: Tensor | None
        self.register_buffer("metric", None)

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, [..., d_in] to [..., d_sae]. They have no pre-activations to hook."""
        sae_in = self.in_metric(self.process_sae_in(x))
        features = matching_pursuit(
            sae_in.reshape(-1, sae_in.shape[-1]),
            self.in_metric(self.W_dec),
            self.cfg.residual_threshold,
            self.cfg.max_iterations or self.cfg.d_in,
            self.cfg.stop_on_duplicate_support,
        )
        return self.hook_sae_acts_post(features.reshape(*sae_in.shape[:-1], -1))

    def in_metric(self, rows: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """Rows whose usual inner products are those of `rows` in the SAE's metric."""
        return rows if self.metric is None else rows @ self.metric

    @torch.no_grad()
    def map_encoder_(self, maps: Sequence[Whitening]) -> Float[Tensor, " d_sae"]:
        """Pursue in the metric of a map; `b_dec` holds the mean."""
        metric = maps[0].matrix if self.metric is None else maps[0].matrix @ self.metric.float()
        self.metric = metric.to(device=self.device, dtype=self.dtype)
        return self.b_dec.new_zeros(self.cfg.d_sae)

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Make room for a metric, if there is one."""
        super().process_state_dict_for_loading(state_dict)
        if "metric" in state_dict:
            self.metric = self.W_dec.new_empty(self.cfg.d_in, self.cfg.d_in)

    def fold_W_dec_norm(self) -> None:
        """Not possible: the norms decide which feature is chosen next.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "The decoder norms of a matching pursuit SAE decide which features are chosen; they "
            "cannot be folded away."
        )

    def fold_activation_norm_scaling_factor(self, activation_norm_scaling_factor: float) -> None:
        """Make an SAE trained on scaled activations work on raw ones, in place.

        The decoder stays: it also encodes, and the pursuit needs its rows' norms as they are. With
        factor s, features come out divided by s, and `sae(x) == old_sae(s * x) / s`.
        """
        factor = float(activation_norm_scaling_factor)
        with torch.no_grad():
            self.b_dec.data /= factor
        self.cfg.residual_threshold /= factor
        self.cfg.normalize_activations = "none"


class MatchingPursuitTrainingSAE(TrainingSAE, MatchingPursuitSAE):
    """See the module's text."""

    def encode(self, x: Tensor) -> Tensor:
        """Features of `x`, as in inference."""
        return MatchingPursuitSAE.encode(self, x)

    def encode_for_training(self, x: Tensor) -> TrainingEncoding:
        """Features; there are no other pre-activations than they themselves."""
        features = self.encode(x)
        return TrainingEncoding(features, features)

    def auxiliary_losses(
        self, step: TrainStepInput, encoding: TrainingEncoding, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """None."""
        return {}

    def recycle_gradients(self) -> None:
        """Drop the decoder's gradient and use its memory for the next step's."""
        if self.W_dec.grad is not None:
            self._workspace.give_back(self.W_dec.grad)
            self.W_dec.grad = None

    def _encoder_from_decoder(self) -> None:
        """Nothing to do: the encoder is the decoder's transpose."""


register_sae_class("matching_pursuit", MatchingPursuitSAE, MatchingPursuitSAEConfig)
register_sae_training_class(
    "matching_pursuit", MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig
)
