"""`ToyModelSAERunnerConfig`: a toy model of superposition, and the SAE trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from sae_lens._version import __version__
from sae_lens.constants import DTYPE_MAP, dtype_name

_B_DEC_INIT_METHODS = ("geometric_median", "mean", "zeros")


@dataclass
class ToyModelSAERunnerConfig:
    """A run that trains a toy model of superposition and then an SAE on its hidden layer.

    Attributes:
        architecture: standard or gated.
        n_features: features of the toy model.
        n_hidden: width of its hidden layer, which the SAE reads.
        n_correlated_pairs: pairs of features that occur together.
        n_anticorrelated_pairs: pairs of features that never occur together.
        feature_probability: how often a feature occurs.
        model_training_steps: steps of training the toy model.
        d_sae: number of features of the SAE.
        l1_coefficient: weight of its sparsity term.
        lr: its learning rate.
        train_batch_size: activations per step.
        b_dec_init_method: geometric_median or mean of the activations, or zeros.
        use_ghost_grads: ghost gradients for dead features.
        feature_sampling_window: steps over which firing densities are measured.
        dead_feature_window: steps of silence after which a feature counts as dead.
        dead_feature_threshold: firing density below which a feature is counted in the logs.
        total_training_tokens: activations to train the SAE on.
        log_to_wandb: log to Weights & Biases.
        wandb_project: project of the run.
        wandb_entity: user or team that owns the project.
        wandb_log_frequency: training steps between two logged steps.
        device: where everything runs.
        seed: seed of everything random in the run.
        checkpoint_path: kept for older configurations; nothing is written.
        dtype: dtype of the SAE.
    """

    architecture: Literal["standard", "gated"] = "standard"

    n_features: int = 5
    n_hidden: int = 2
    n_correlated_pairs: int = 0
    n_anticorrelated_pairs: int = 0
    feature_probability: float = 0.025
    model_training_steps: int = 10_000

    d_sae: int = 5

    l1_coefficient: float = 1e-3
    lr: float = 3e-4
    train_batch_size: int = 1024
    b_dec_init_method: str = "geometric_median"

    use_ghost_grads: bool = False
    feature_sampling_window: int = 100
    dead_feature_window: int = 100
    dead_feature_threshold: float = 1e-8

    total_training_tokens: int = 25_000

    log_to_wandb: bool = True
    wandb_project: str = "mats_sae_training_toy_model"
    wandb_entity: str | None = None
    wandb_log_frequency: int = 50

    device: str = "cpu"
    seed: int = 42
    checkpoint_path: str = "checkpoints"
    dtype: str | torch.dtype = "float32"

    def __post_init__(self) -> None:
        if self.architecture not in ("standard", "gated"):
            raise ValueError(
                f"architecture is {self.architecture!r}; toy models take standard or gated."
            )
        if self.b_dec_init_method not in _B_DEC_INIT_METHODS:
            raise ValueError(
                f"b_dec_init_method is {self.b_dec_init_method!r}; allowed are "
                f"{', '.join(_B_DEC_INIT_METHODS)}."
            )
        if str(self.dtype) not in DTYPE_MAP:
            raise ValueError(f"dtype is {self.dtype!r}; allowed are {', '.join(DTYPE_MAP)}.")
        if self.train_batch_size < 1 or self.total_training_tokens < self.train_batch_size:
            raise ValueError(
                f"total_training_tokens={self.total_training_tokens} is less than one batch of "
                f"train_batch_size={self.train_batch_size}."
            )

    def get_base_sae_cfg_dict(self) -> dict[str, Any]:
        """What the config of the run's SAE is made from, `SAEConfig` or `TrainingSAEConfig`."""
        return {
            "architecture": self.architecture,
            "d_in": self.n_hidden,
            "d_sae": self.d_sae,
            "dtype": dtype_name(self.dtype),
            "device": str(self.device),
            "model_name": "ToyModel",
            "hook_name": "hook_hidden",
            "hook_layer": 0,
            "hook_head_index": None,
            "activation_fn_str": "relu",
            "activation_fn_kwargs": {},
            "apply_b_dec_to_input": True,
            "finetuning_scaling_factor": False,
            "sae_lens_training_version": __version__,
            "prepend_bos": False,
            "dataset_path": "",
            "dataset_trust_remote_code": None,
            "context_size": 1,
            "normalize_activations": "none",
            "model_from_pretrained_kwargs": {},
            "seqpos_slice": (None,),
        }
