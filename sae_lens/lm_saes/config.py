"""The three configs, as pydantic models: keyword construction, validation, JSON.

Steps are ints, or floats in [0, 1] that mean a share of the training; `1` and `1.0` differ. Making
a config creates no folders; the trainer does when it first writes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sae_lens.constants import DTYPE_MAP
from sae_lens.lm_saes.loss import SparsityLossType
from sae_lens.training.loss_schedules import (
    CheckpointSpacing,
    KScheduleName,
    LearningRateName,
    check_steps,
)

# Phases that follow each other.
_SHARES_OF_ONE_WAY = (
    ("lr_warm_up_steps", "lr_cool_down_steps"),
    ("k_cold_booting_steps", "k_warmup_steps"),
)

# exp of it is a number in float32.
_LARGEST_LOG = 80.0

#: names of the optimiser's parameter groups
PARAMETER_GROUPS = ("others", "jumprelu")


class BaseConfig(BaseModel):
    """What all configs here share: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class TrainerConfig(BaseConfig):
    """How a `Trainer` trains.

    Attributes:
        l1_coefficient: weight of the sparsity term; None for 1 without a warm-up.
        l1_coefficient_warmup_steps: steps over which it rises from 0.
        lp_coefficient: weight of `relu(threshold - h) * norm`, summed over features; JumpReLU only.
        auxk_coefficient: weight of the aux-k term; None for none.
        amp_dtype: dtype of autocast, also by name; None for no autocast. Not in `model_dump`.
        sparsity_loss_type: "power", "tanh", "tanh-quad", or None for no sparsity term. Besides, for
            JumpReLU, "step" (L0), and "quadratic" (towards the `target_l0` of the SAE's config).
        tanh_stretch_coefficient: c in the tanh terms.
        frequency_scale: firing frequency at which tanh-quad doubles the price.
        p: of the power term's norm.
        initial_k: where the schedule of k starts; None for no schedule.
        k_warmup_steps: length of that schedule; 0 disables it.
        k_cold_booting_steps: steps at `initial_k` before it.
        k_schedule_type: "linear" or "exponential".
        k_exponential_factor: how fast the exponential one falls.
        k_aux: dead features in the aux-k term of each token.
        dead_threshold: tokens without activation after which a feature is dead.
        skip_metrics_calculation: neither update nor log metrics.
        gradient_accumulation_steps: batches for each step of the optimiser.
        lr: learning rate, or one for each parameter group by name ("others", "jumprelu").
        betas: Adam's decays.
        optimizer_class: "adam" or "sparseadam".
        optimizer_foreach: update tensors together (Adam).
        lr_scheduler_name: one of six, see `training/loss_schedules.py`.
        lr_end_ratio: final learning rate as a share of lr.
        lr_warm_up_steps: steps of linear warm-up.
        lr_cool_down_steps: last steps, in which "constantwithwarmup" falls.
        jumprelu_lr_factor: learning rate of thresholds as a multiple of lr.
        clip_grad_norm: largest gradient norm (per root of the number of non-zero entries); 0 for
            no clipping.
        feature_sampling_window: unused, kept so that configurations from there work.
        total_training_tokens: tokens to train on.
        log_frequency: steps between two logs.
        eval_frequency: steps between two evaluations.
        n_checkpoints: checkpoints along the way.
        check_point_save_mode: spacing of checkpoints, "log" or "linear".
        from_pretrained_path: checkpoint folder to go on from; must exist.
        exp_result_path: folder for results.
    """

    l1_coefficient: float | None = Field(default=0.00008, ge=0.0)
    l1_coefficient_warmup_steps: int | float = 0.1
    lp_coefficient: float | None = Field(default=None, ge=0.0)
    auxk_coefficient: float | None = Field(default=None, ge=0.0)
    amp_dtype: torch.dtype | None = Field(default=torch.bfloat16, exclude=True)
    sparsity_loss_type: SparsityLossType | None = None
    tanh_stretch_coefficient: float = Field(default=4.0, gt=0.0)
    frequency_scale: float = Field(default=0.01, gt=0.0)
    p: int = Field(default=1, ge=1)
    initial_k: int | float | None = None
    k_warmup_steps: int | float = 0.1
    k_cold_booting_steps: int | float = 0
    k_schedule_type: KScheduleName = "linear"
    k_exponential_factor: float = 3.0
    k_aux: int = Field(default=512, ge=1)
    dead_threshold: float = Field(default=10_000_000, ge=0.0)
    skip_metrics_calculation: bool = False
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    lr: float | dict[str, float] = 0.0004
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer_class: Literal["adam", "sparseadam"] = "adam"
    optimizer_foreach: bool = True
    lr_scheduler_name: LearningRateName = "constantwithwarmup"
    lr_end_ratio: float = 1 / 32
    lr_warm_up_steps: int | float = 5000
    lr_cool_down_steps: int | float = 0.2
    jumprelu_lr_factor: float = Field(default=1.0, ge=0.0)
    clip_grad_norm: float = Field(default=0.0, ge=0.0)
    feature_sampling_window: int = 1000
    total_training_tokens: int = 300_000_000
    log_frequency: int = Field(default=1000, ge=1)
    eval_frequency: int = Field(default=1000, ge=1)
    n_checkpoints: int = Field(default=10, ge=0)
    check_point_save_mode: CheckpointSpacing = "log"
    from_pretrained_path: str | None = None
    exp_result_path: str = "results"

    @field_validator("amp_dtype", mode="before")
    @classmethod
    def _dtype_of_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in DTYPE_MAP:
                raise ValueError(f"amp_dtype is {value!r}; allowed are {list(DTYPE_MAP)} or None.")
            return DTYPE_MAP[value]
        return value

    @field_validator(
        "l1_coefficient_warmup_steps",
        "k_warmup_steps",
        "k_cold_booting_steps",
        "lr_warm_up_steps",
        "lr_cool_down_steps",
    )
    @classmethod
    def _steps_or_share(cls, value: int | float, info: Any) -> int | float:
        check_steps(info.field_name, value)
        return value

    @field_validator("lr")
    @classmethod
    def _known_groups(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        if isinstance(value, dict) and (
            "others" not in value or value.keys() - set(PARAMETER_GROUPS)
        ):
            raise ValueError(
                f"lr names the parameter groups {sorted(value)}; there are 'others' (needed) and "
                "'jumprelu'."
            )
        for rate in value.values() if isinstance(value, dict) else [value]:
            if not 0 <= rate < math.inf:
                raise ValueError(
                    f"lr is {value}; a learning rate is a finite number of at least 0."
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainerConfig:
        if not 0.0 <= self.lr_end_ratio <= 1.0:
            raise ValueError(f"lr_end_ratio is {self.lr_end_ratio}; it must lie in [0, 1].")
        if self.lr_scheduler_name == "exponentialwarmup" and self.lr_end_ratio == 0:
            raise ValueError("exponentialwarmup never reaches lr_end_ratio=0; give one above 0.")
        if isinstance(self.lr, dict) and "jumprelu" in self.lr and self.jumprelu_lr_factor != 1:
            raise ValueError(
                f"lr gives the group 'jumprelu' a rate of its own, {self.lr['jumprelu']}, and "
                f"jumprelu_lr_factor={self.jumprelu_lr_factor} another; leave one of them out."
            )
        for first, second in _SHARES_OF_ONE_WAY:
            shares = getattr(self, first), getattr(self, second)
            if all(isinstance(share, float) for share in shares) and sum(shares) > 1:
                raise ValueError(
                    f"{first}={shares[0]} and {second}={shares[1]} are shares of the training, one "
                    "after the other, and more than the whole of it; shorten them."
                )
        if self.from_pretrained_path is not None and not Path(self.from_pretrained_path).exists():
            raise ValueError(f"from_pretrained_path {self.from_pretrained_path!r} does not exist.")
        return self

    def learning_rate(self, group: str) -> float:
        """The learning rate of a parameter group."""
        rates = self.lr if isinstance(self.lr, dict) else {"others": self.lr}
        if group == "jumprelu":
            return rates.get("jumprelu", rates["others"] * self.jumprelu_lr_factor)
        return rates["others"]


class WandbConfig(BaseConfig):
    """Where a run is logged in W&B.

    Attributes:
        wandb_project: the project.
        exp_name: name of the run.
        wandb_entity: user or team that owns the project.
        wandb_run_id: id of the run, to go on with one.
        wandb_resume: "allow", "must", "never" or "auto".
    """

    wandb_project: str = "gpt2-sae-training"
    exp_name: str | None = None
    wandb_entity: str | None = None
    wandb_run_id: str | None = None
    wandb_resume: Literal["allow", "must", "never", "auto"] = "never"

    def init(self, **kwargs: Any) -> Any:
        """Start the run: `wandb.init` with these settings; `kwargs` are passed on."""
        import wandb

        return wandb.init(
            project=self.wandb_project,
            name=self.exp_name,
            entity=self.wandb_entity,
            id=self.wandb_run_id,
            resume=self.wandb_resume,
            **kwargs,
        )


class InitializerConfig(BaseConfig):
    """How an `Initializer` sets the first weights.

    Attributes:
        bias_init_method: decoder bias "all_zero", or the "geometric_median" of the first batch.
        decoder_uniform_bound: decoder entries are uniform in plus or minus this.
        encoder_uniform_bound: encoder entries likewise.
        init_encoder_with_decoder_transpose: encoder as a multiple of the decoder's transpose.
        init_encoder_with_decoder_transpose_factor: that multiple.
        init_log_jumprelu_threshold_value: first log-threshold of JumpReLU; None for ln 0.001.
        grid_search_init_norm: search for the decoder norm that reconstructs best.
        initialize_W_D_with_active_subspace: project decoder rows into the labels' top subspace.
        d_active_subspace: dimension of that subspace; needed for it.
        initialize_lorsa_with_mhsa: out of scope.
        initialize_tc_with_mlp: a transcoder's decoder from the model's MLP at `model_layer`.
        model_layer: the layer of that MLP.
        init_encoder_bias_with_mean_hidden_pre: subtract the mean pre-activation from the bias.
    """

    bias_init_method: Literal["all_zero", "geometric_median"] = "all_zero"
    decoder_uniform_bound: float = Field(default=1.0, gt=0.0)
    encoder_uniform_bound: float = Field(default=1.0, gt=0.0)
    init_encoder_with_decoder_transpose: bool = True
    init_encoder_with_decoder_transpose_factor: float = Field(default=1.0, gt=0.0)
    init_log_jumprelu_threshold_value: float | None = None
    grid_search_init_norm: bool = False
    initialize_W_D_with_active_subspace: bool = False
    d_active_subspace: int | None = Field(default=None, ge=1)
    initialize_lorsa_with_mhsa: bool | None = None
    initialize_tc_with_mlp: bool | None = None
    model_layer: int | None = None
    init_encoder_bias_with_mean_hidden_pre: bool = False

    # pydantic reserves names that begin with "model_" for itself
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="after")
    def _complete(self) -> InitializerConfig:
        if self.initialize_W_D_with_active_subspace and self.d_active_subspace is None:
            raise ValueError("initialize_W_D_with_active_subspace needs d_active_subspace.")
        if self.initialize_tc_with_mlp and self.model_layer is None:
            raise ValueError("initialize_tc_with_mlp needs model_layer.")
        value = self.init_log_jumprelu_threshold_value
        if value is not None and not -_LARGEST_LOG <= value <= _LARGEST_LOG:
            raise ValueError(
                f"init_log_jumprelu_threshold_value is {value}, the logarithm of a threshold; it "
                f"must lie between -{_LARGEST_LOG:g} and {_LARGEST_LOG:g}."
            )
        return self
