"""The SAE's hyper-parameters under their names in Language-Model-SAEs, and what they are here."""

from __future__ import annotations

import logging
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sae_lens.constants import DTYPE_MAP
from sae_lens.hook_names import layer_of
from sae_lens.lm_saes.config import BaseConfig
from sae_lens.saes import (
    BatchTopKTrainingSAEConfig,
    BatchTopKTranscoderTrainingConfig,
    JumpReLUTranscoderTrainingConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TopKTranscoderTrainingConfig,
    TrainingSAEConfig,
    TranscoderTrainingConfig,
)

logger = logging.getLogger(__name__)

NORMALIZATIONS = {
    "token-wise": "constant_norm_rescale",
    "dataset-wise": "expected_average_only_in",
    "inference": "none",
}


class SAEConfig(BaseConfig):
    """What SAE to make.

    Attributes:
        hook_point_in: hook whose activations are encoded.
        hook_point_out: hook whose activations are reconstructed; None for the same.
        d_model: width of the activations.
        expansion_factor: features per dimension.
        act_fn: "relu", "topk", "batchtopk" or "jumprelu".
        top_k: features per token.
        jumprelu_threshold_window: width of the pseudo-gradient's window.
        norm_activation: "dataset-wise", "token-wise" or "inference".
        sparsity_include_decoder_norm: the topk family selects by activation times decoder norm.
            (The sparsity term of the others always weighs features by that norm.)
        dtype: name of the weights' dtype.
        device: where the weights are.
    """

    hook_point_in: str
    hook_point_out: str | None = None
    d_model: int = Field(ge=1)
    expansion_factor: int | float = Field(default=8, gt=0)
    act_fn: Literal["relu", "topk", "batchtopk", "jumprelu"] = "relu"
    top_k: int = 50
    jumprelu_threshold_window: float = 2.0
    norm_activation: Literal["dataset-wise", "token-wise", "inference", "batch-wise"] = (
        "dataset-wise"
    )
    sparsity_include_decoder_norm: bool = True
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.d_model * self.expansion_factor)

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_name(cls, value: Any) -> str:
        name = str(value)
        if name not in DTYPE_MAP:
            raise ValueError(f"dtype is {name!r}; allowed are {list(DTYPE_MAP)}.")
        return name.removeprefix("torch.")

    @model_validator(mode="after")
    def _supported(self) -> SAEConfig:
        if self.norm_activation == "batch-wise":
            raise ValueError(
                "norm_activation='batch-wise' has no counterpart here; use dataset-wise, "
                "token-wise or inference."
            )
        if self.is_transcoder and self.norm_activation == "token-wise":
            raise ValueError(
                "A transcoder (hook_point_out other than hook_point_in) cannot undo token-wise "
                "normalisation of its input on its output; use dataset-wise or inference."
            )
        if not self.sparsity_include_decoder_norm and self.act_fn in ("relu", "jumprelu"):
            logger.warning(
                "sparsity_include_decoder_norm=False has no effect on act_fn=%r, which selects by "
                "sign or threshold; the sparsity term weighs features by their decoder norm.",
                self.act_fn,
            )
        return self

    @property
    def is_transcoder(self) -> bool:
        """Whether something else than the input is reconstructed."""
        return self.hook_point_out not in (None, self.hook_point_in)

    def to_training_config(self) -> TrainingSAEConfig:
        """The config of the `TrainingSAE` that this describes."""
        common: dict[str, Any] = {
            "d_in": self.d_model,
            "d_sae": self.d_sae,
            "hook_name": self.hook_point_in,
            "hook_layer": layer_of(self.hook_point_in),
            "normalize_activations": NORMALIZATIONS[self.norm_activation],
            "apply_b_dec_to_input": False,
            "dtype": self.dtype,
            "device": self.device,
        }
        with_norm = self.sparsity_include_decoder_norm
        if self.is_transcoder:
            return self._transcoder_config(common, with_norm)
        if self.act_fn == "topk":
            return TopKTrainingSAEConfig(
                **common, k=self.top_k, rescale_acts_by_decoder_norm=with_norm
            )
        if self.act_fn == "batchtopk":
            return BatchTopKTrainingSAEConfig(
                **common, k=self.top_k, rescale_acts_by_decoder_norm=with_norm
            )
        if self.act_fn == "relu":
            return StandardTrainingSAEConfig(
                **common, scale_sparsity_penalty_by_decoder_norm=with_norm
            )
        # log-thresholds are those of the flat form
        return TrainingSAEConfig(
            **common,
            architecture="jumprelu",
            activation_fn_str="relu",
            finetuning_scaling_factor=False,
            context_size=None,
            model_name=None,
            hook_head_index=None,
            prepend_bos=True,
            dataset_path=None,
            dataset_trust_remote_code=None,
            sae_lens_training_version=None,
            jumprelu_bandwidth=self.jumprelu_threshold_window,
            normalize_sae_decoder=False,
            scale_sparsity_penalty_by_decoder_norm=with_norm,
        )

    def _transcoder_config(self, common: dict[str, Any], with_norm: bool) -> TrainingSAEConfig:
        common["hook_name_out"] = self.hook_point_out
        if self.act_fn == "relu":
            return TranscoderTrainingConfig(
                **common, scale_sparsity_penalty_by_decoder_norm=with_norm
            )
        if self.act_fn == "jumprelu":
            return JumpReLUTranscoderTrainingConfig(
                **common, jumprelu_bandwidth=self.jumprelu_threshold_window
            )
        selects = {
            "topk": TopKTranscoderTrainingConfig,
            "batchtopk": BatchTopKTranscoderTrainingConfig,
        }
        return selects[self.act_fn](**common, k=self.top_k, rescale_acts_by_decoder_norm=with_norm)
