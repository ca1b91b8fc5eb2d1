"""Training transcoders: the formulas of an SAE's training, from one activation to another.

    f as in the SAE of the same name, with x W_enc + b_enc;  y' = f W_dec + b_dec (+ x W_skip^T)
    loss = |y - y'|^2 + the terms of that SAE

See `transcoder.py` for the papers. A batch is input and target side by side, [batch, d_in + d_out]
(`activations/paired.py`). Every architecture exists with and without the skip connection, which
starts at zero and sees the input as it comes; what normalises each token is for the encoder alone.

Saved for inference, relu and jumprelu stay what they are. Those that select become jumprelu
transcoders, whose threshold follows the smallest kept activation while training, since released
formats have no transcoder that selects. For batchtopk that is how it is meant to be used; for topk
it is an approximation (about k on average instead of k for each token), for which the threshold
follows the mean over tokens of the smallest.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lens.hook_names import refuse_wrong_order
from sae_lens.loading.inference_form import inference_architecture
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.activation_fns import TopK
from sae_lens.saes.batch_topk import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.config import ArchitectureTrainingSAEConfig
from sae_lens.saes.jumprelu import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.standard import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk import TopKTrainingSAE
from sae_lens.saes.training import TrainingSAE
from sae_lens.saes.transcoder import TranscoderMaps


@dataclass(kw_only=True)
class PairedTrainingConfig(ArchitectureTrainingSAEConfig):
    """What the configs of all transcoders have besides those of the SAE of the same name.

    Attributes:
        d_out: width of the output; that of the input when None.
        hook_name_out: the hook whose activations are modelled; kept in the metadata.
        apply_b_dec_to_input: must be False: `b_dec` belongs to the output.
    """

    apply_b_dec_to_input: bool = False
    d_out: int | None = None
    hook_name_out: InitVar[str | None] = None

    def __post_init__(  # type: ignore[override]
        self, metadata: Any, reshape_activations: str | None, hook_name_out: str | None
    ) -> None:
        super().__post_init__(metadata, reshape_activations)
        if hook_name_out is not None:
            self.extra_metadata["hook_name_out"] = hook_name_out
        if self.d_out is None:
            self.d_out = self.d_in
        if self.apply_b_dec_to_input:
            raise ValueError(
                "A transcoder's b_dec is a bias of its output: apply_b_dec_to_input must be False."
            )
        refuse_wrong_order(self.hook_name, self.extra_metadata.get("hook_name_out"))


def _hook_name_out(self: PairedTrainingConfig) -> str | None:
    """The hook whose activations are modelled."""
    return self.extra_metadata.get("hook_name_out")


def _set_hook_name_out(self: PairedTrainingConfig, name: str | None) -> None:
    self.extra_metadata["hook_name_out"] = name


# The dataclass machinery leaves the default of an init-only argument under its name.
PairedTrainingConfig.hook_name_out = property(_hook_name_out, _set_hook_name_out)  # type: ignore[assignment]


class TranscoderTraining(TranscoderMaps, TrainingSAE):
    """The part of every transcoder's training that differs from an SAE's."""

    in_both_forms = ("split_batch",)

    @property
    def activation_widths(self) -> tuple[int, int]:
        """Widths of the two activations in a row of a batch."""
        return self.cfg.d_in, self.cfg.d_out

    def _encoder_from_decoder(self) -> None:
        """The encoder as the decoder's transpose where widths allow it; else rows of that norm.

        Input and output are different spaces, so this is a choice of scale more than of direction.
        """
        if self.cfg.d_in == self.cfg.d_out:
            super()._encoder_from_decoder()
        else:
            norm = self.cfg.decoder_init_norm
            self.W_enc.data.mul_(norm / self.W_enc.data.norm(dim=0).clamp(min=1e-30))

    def split_batch(
        self, batch: Float[Tensor, "batch both"]
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_out"]]:
        """Input and target of rows that hold both, [batch, d_in + d_out].

        Raises:
            ValueError: when the rows have another width.
        """
        d_in, d_out = self.activation_widths
        if batch.shape[-1] != d_in + d_out:
            raise ValueError(
                f"A batch for a transcoder holds input and target side by side, {d_in} + {d_out} "
                f"wide; this one is {batch.shape[-1]} wide."
            )
        return batch[..., :d_in], batch[..., d_in:]

    def as_decoded(self, batch: Tensor) -> Tensor:
        """The target as it is: what normalises each token is for the input alone."""
        return self.split_batch(batch)[1]

    def initialize_b_dec_with_precalculated(self, origin: Tensor) -> None:
        """Set the decoder bias; of a row of both activations, the target's part."""
        super().initialize_b_dec_with_precalculated(origin[-self.cfg.d_out :])

    def initialize_b_dec_with_mean(self, all_activations: Tensor) -> None:
        """Set the decoder bias to the mean target."""
        super().initialize_b_dec_with_mean(all_activations[:, -self.cfg.d_out :])

    def inference_components(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A transcoder that released formats know; see the module's text."""
        values, state_dict = super().inference_components()
        name = inference_architecture(str(self.cfg.architecture))
        return {**values, "architecture": name, "d_out": self.cfg.d_out}, state_dict


# -- relu -----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class TranscoderTrainingConfig(PairedTrainingConfig, StandardTrainingSAEConfig):
    """Config of a `TranscoderTrainingSAE`: d_out, hook_name_out, and that of a standard SAE."""

    architecture: str = "transcoder"


@dataclass(kw_only=True)
class SkipTranscoderTrainingConfig(TranscoderTrainingConfig):
    """Config of a `SkipTranscoderTrainingSAE`."""

    architecture: str = "skip_transcoder"


class TranscoderTrainingSAE(TranscoderTraining, StandardTrainingSAE):
    """Features by ReLU, sparsity by a p-norm."""

    architecture = "transcoder"


class SkipTranscoderTrainingSAE(TranscoderTrainingSAE):
    """The same with a skip connection."""

    architecture = "skip_transcoder"
    has_skip = True


# -- jumprelu -------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class JumpReLUTranscoderTrainingConfig(PairedTrainingConfig, JumpReLUTrainingSAEConfig):
    """Config of a `JumpReLUTranscoderTrainingSAE`: d_out, hook_name_out, and that of jumprelu."""

    architecture: str = "jumprelu_transcoder"


@dataclass(kw_only=True)
class JumpReLUSkipTranscoderTrainingConfig(JumpReLUTranscoderTrainingConfig):
    """Config of a `JumpReLUSkipTranscoderTrainingSAE`."""

    architecture: str = "jumprelu_skip_transcoder"


class JumpReLUTranscoderTrainingSAE(TranscoderTraining, JumpReLUTrainingSAE):
    """Features above learned thresholds."""

    architecture = "jumprelu_transcoder"


class JumpReLUSkipTranscoderTrainingSAE(JumpReLUTranscoderTrainingSAE):
    """The same with a skip connection."""

    architecture = "jumprelu_skip_transcoder"
    has_skip = True


# -- batchtopk and topk ---------------------------------------------------------------------------


@dataclass(kw_only=True)
class BatchTopKTranscoderTrainingConfig(PairedTrainingConfig, BatchTopKTrainingSAEConfig):
    """Config of a `BatchTopKTranscoderTrainingSAE`: d_out, hook_name_out, and that of batchtopk."""

    architecture: str = "batchtopk_transcoder"


@dataclass(kw_only=True)
class BatchTopKSkipTranscoderTrainingConfig(BatchTopKTranscoderTrainingConfig):
    """Config of a `BatchTopKSkipTranscoderTrainingSAE`."""

    architecture: str = "batchtopk_skip_transcoder"


@dataclass(kw_only=True)
class TopKTranscoderTrainingConfig(BatchTopKTranscoderTrainingConfig):
    """Config of a `TopKTranscoderTrainingSAE`; k is a whole number."""

    architecture: str = "topk_transcoder"

    takes_shares_of_k: ClassVar[bool] = False


@dataclass(kw_only=True)
class TopKSkipTranscoderTrainingConfig(TopKTranscoderTrainingConfig):
    """Config of a `TopKSkipTranscoderTrainingSAE`."""

    architecture: str = "topk_skip_transcoder"


class BatchTopKTranscoderTrainingSAE(TranscoderTraining, BatchTopKTrainingSAE):
    """The largest activations of the whole batch."""

    architecture = "batchtopk_transcoder"


class BatchTopKSkipTranscoderTrainingSAE(BatchTopKTranscoderTrainingSAE):
    """The same with a skip connection."""

    architecture = "batchtopk_skip_transcoder"
    has_skip = True


class TopKTranscoderTrainingSAE(BatchTopKTranscoderTrainingSAE):
    """The k largest activations of each token."""

    architecture = "topk_transcoder"

    has_sparse_form = TopKTrainingSAE.has_sparse_form
    _entries_to_select = TopKTrainingSAE._entries_to_select
    _find_entries = TopKTrainingSAE._find_entries

    def _make_activation_fn(self) -> nn.Module:
        return TopK(int(self.cfg.activation_fn_kwargs["k"]))

    def smallest_kept(self, feature_acts: Tensor) -> Tensor:
        """The mean over tokens of each one's smallest, above which there are about k on average.

        The smallest of all, that of the token with the weakest features, would let far more pass.
        """
        if feature_acts.is_sparse:
            rows, values = feature_acts.indices()[0], feature_acts.values()
            smallest = values.new_full((feature_acts.shape[0],), torch.inf)
            positive = torch.where(values > 0, values, torch.inf)
            smallest = smallest.scatter_reduce(0, rows, positive, "amin")
        else:
            smallest = torch.where(feature_acts > 0, feature_acts, torch.inf).amin(dim=-1)
        finite = smallest.isfinite()
        total = torch.where(finite, smallest, 0).sum()
        return torch.where(finite.any(), total / finite.sum().clamp(min=1), torch.inf)


class TopKSkipTranscoderTrainingSAE(TopKTranscoderTrainingSAE):
    """The same with a skip connection."""

    architecture = "topk_skip_transcoder"
    has_skip = True


for _sae_class, _config_class in (
    (TranscoderTrainingSAE, TranscoderTrainingConfig),
    (SkipTranscoderTrainingSAE, SkipTranscoderTrainingConfig),
    (JumpReLUTranscoderTrainingSAE, JumpReLUTranscoderTrainingConfig),
    (JumpReLUSkipTranscoderTrainingSAE, JumpReLUSkipTranscoderTrainingConfig),
    (BatchTopKTranscoderTrainingSAE, BatchTopKTranscoderTrainingConfig),
    (BatchTopKSkipTranscoderTrainingSAE, BatchTopKSkipTranscoderTrainingConfig),
    (TopKTranscoderTrainingSAE, TopKTranscoderTrainingConfig),
    (TopKSkipTranscoderTrainingSAE, TopKSkipTranscoderTrainingConfig),
):
    register_sae_training_class(_sae_class.architecture, _sae_class, _config_class)
