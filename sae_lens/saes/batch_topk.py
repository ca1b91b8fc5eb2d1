"""BatchTopK SAE: keep the k * batch largest activations of the whole batch.

Bussmann, Leask & Nanda 2024, "BatchTopK Sparse Autoencoders" (arXiv:2412.06410), section 3: the
number of features may differ between tokens, k on average. Selecting needs the whole batch, so a
running threshold follows the smallest kept activation, and inference uses it as a JumpReLU SAE.
Loss and aux-k are those of topk in the v6 form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae_lens.kernels.active_entries import ActiveEntries
from sae_lens.kernels.top_entries import top_entries
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.topk import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.training import TrainStepOutput
from sae_lens.saes.training_step import reported_features
from sae_lens.saes.weights import are_without_values


@dataclass(kw_only=True)
class BatchTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """Config of a `BatchTopKTrainingSAE`.

    Attributes:
        k: features per token on average; may be a fraction.
        topk_threshold_lr: how fast the running threshold follows.
    """

    architecture: str = "batchtopk"
    k: float = 100  # type: ignore[assignment]
    topk_threshold_lr: float = 0.01

    takes_shares_of_k: ClassVar[bool] = True


class BatchTopK(nn.Module):
    """ReLU, then the `int(k * tokens)` largest entries of the whole batch; zeros elsewhere."""

    def __init__(self, k: float):
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Select over all dimensions of [..., d_sae]."""
        acts = torch.relu(x)
        n_kept = min(int(self.k * (acts.numel() // acts.shape[-1])), acts.numel())
        flat = acts.flatten()
        top = torch.topk(flat, n_kept, sorted=False)
        return torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(acts)


class BatchTopKTrainingSAE(TopKTrainingSAE):
    """See the module's text."""

    architecture = "batchtopk"
    topk_threshold: Tensor

    def _make_activation_fn(self) -> nn.Module:
        return BatchTopK(self.cfg.activation_fn_kwargs["k"])

    def initialize_weights(self) -> None:
        """The standard parameters and the running threshold (a float64 scalar buffer)."""
        super().initialize_weights()
        device = torch.device("meta") if are_without_values() else self.device
        threshold = torch.zeros((), dtype=torch.float64, device=device)
        self.register_buffer("topk_threshold", threshold)

    def training_forward_pass(self, *args: Any, **kwargs: Any) -> TrainStepOutput:
        """As every training pass; also moves the running threshold."""
        output = super().training_forward_pass(*args, **kwargs)
        self.update_topk_threshold(reported_features(output), output.is_incomplete)
        output.metrics["topk_threshold"] = self.topk_threshold
        return output

    def has_sparse_form(self) -> bool:
        """With this architecture's own selection."""
        return type(self.activation_fn) is BatchTopK

    def _entries_to_select(self, batch: int) -> int:
        return min(int(self._selection.k * batch), batch * self.cfg.d_sae)

    def _find_entries(self, centred_in: Tensor, scale: Tensor | None) -> ActiveEntries:
        return top_entries(
            centred_in,
            self.W_enc,
            self.b_enc,
            scale,
            k=self._entries_to_select(len(centred_in)),
            over_batch=True,
            workspace=self._workspace,
        )

    @torch.no_grad()
    def update_topk_threshold(
        self, feature_acts: Tensor, is_left_out: Tensor | None = None
    ) -> None:
        """Move towards the smallest positive kept activation; stay when there is none.

        Args:
            feature_acts: features of a batch, dense or sparse.
            is_left_out: bool scalar tensor; where it is true, the batch does not count.
        """
        smallest = self.smallest_kept(feature_acts.detach()).to(self.topk_threshold.dtype)
        moved = torch.lerp(self.topk_threshold, smallest, self.cfg.topk_threshold_lr)
        moves = smallest.isfinite()
        if is_left_out is not None:
            moves = moves & ~is_left_out
        self.topk_threshold.copy_(torch.where(moves, moved, self.topk_threshold))

    def smallest_kept(self, feature_acts: Tensor) -> Tensor:
        """The smallest positive activation of a batch, dense or sparse; not finite without one."""
        kept = feature_acts.values() if feature_acts.is_sparse else feature_acts
        return torch.where(kept > 0, kept, torch.inf).min()

    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, activation_norm_scaling_factor: float) -> None:
        """As the base's; when rescaling, the threshold shrinks by the factor as features do."""
        super().fold_activation_norm_scaling_factor(activation_norm_scaling_factor)
        if self.rescales_acts:
            self.topk_threshold.div_(float(activation_norm_scaling_factor))

    def inference_components(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A jumprelu SAE whose thresholds all equal the running one."""
        values, state_dict = super().inference_components()
        threshold = state_dict.pop("topk_threshold")
        state_dict["threshold"] = threshold.to(self.dtype).repeat(self.cfg.d_sae)
        values.update(architecture="jumprelu", activation_fn_str="relu", activation_fn_kwargs={})
        for name in ("k", "rescale_acts_by_decoder_norm"):
            values.pop(name, None)
        return values, state_dict


register_sae_training_class("batchtopk", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig)
