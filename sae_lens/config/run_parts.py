"""The configs that the config of a run is composed of."""

from __future__ import annotations

from typing import Any

from sae_lens.config.nested import as_trainer_config, run_sae_config
from sae_lens.config.trainer import SAETrainerConfig
from sae_lens.saes.config import TrainingSAEConfig


class RunParts:
    """The part of a run's config that gives those of its SAE and its trainer."""

    sae: TrainingSAEConfig | None
    activation_fn: str
    finetuning_method: str | None
    exclude_special_tokens: bool | list[int]

    # An SAE may be made with this config as its own; it then asks for two fields by these names.

    @property
    def activation_fn_str(self) -> str:
        """The same as `activation_fn`."""
        return self.activation_fn

    @property
    def finetuning_scaling_factor(self) -> bool:
        """Whether the SAE has a factor for fine-tuning."""
        return self.finetuning_method is not None

    def get_base_sae_cfg_dict(self) -> dict[str, Any]:
        """What an inference config of the run's SAE is made from (21 keys)."""
        names = (
            "architecture", "d_in", "d_sae", "dtype", "device", "model_name", "hook_name",
            "hook_layer", "hook_head_index", "activation_fn_kwargs", "apply_b_dec_to_input",
            "context_size", "prepend_bos", "dataset_path", "dataset_trust_remote_code",
            "sae_lens_training_version", "normalize_activations", "model_from_pretrained_kwargs",
            "seqpos_slice",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "activation_fn_str": self.activation_fn_str,
            "finetuning_scaling_factor": self.finetuning_scaling_factor,
        }

    def get_training_sae_cfg_dict(self) -> dict[str, Any]:
        """What a training config of the run's SAE is made from."""
        if self.sae is not None and self.sae.form == "v6":
            return self.training_sae_config().to_dict()
        names = (
            "l1_coefficient", "lp_norm", "use_ghost_grads", "normalize_sae_decoder", "noise_scale",
            "decoder_orthogonal_init", "mse_loss_normalization", "decoder_heuristic_init",
            "decoder_heuristic_init_norm", "init_encoder_as_decoder_transpose",
            "jumprelu_init_threshold", "jumprelu_bandwidth",
            "scale_sparsity_penalty_by_decoder_norm",
        )  # fmt: skip
        return {**self.get_base_sae_cfg_dict(), **{name: getattr(self, name) for name in names}}

    def training_sae_config(self) -> TrainingSAEConfig:
        """The config of the SAE that the run trains, of the class that `sae` has if it is given."""
        if self.sae is not None and self.sae.form == "v6":
            config = run_sae_config(self)
        else:
            config = TrainingSAEConfig.from_dict(self.get_training_sae_cfg_dict())
        if self.exclude_special_tokens:
            # evaluations leave them out as well
            config.extra_metadata["exclude_special_tokens"] = self.exclude_special_tokens
        return config

    def to_sae_trainer_config(self) -> SAETrainerConfig:
        """The part that concerns training alone, for a trainer on any source of activations."""
        return as_trainer_config(self)
