"""What a training SAE is in files: itself, and the inference SAE that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sae_lens.constants import FILE_FORMAT_VERSION
from sae_lens.registry import SAE_CLASSES
from sae_lens.saes.config import SAEConfig, TrainingSAEConfig
from sae_lens.saes.files import write_sae_folder
from sae_lens.saes.whitening import refuse_unfolded

if TYPE_CHECKING:
    from typing_extensions import Self


class TrainingFiles(nn.Module):
    """The part of a training SAE that makes it from a config and writes what it becomes."""

    cfg: Any
    architecture: str
    _file_config: Callable[[], dict[str, Any]]
    process_state_dict_for_saving: Callable[[dict[str, Any]], None]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Self:
        """A fresh training SAE from a config dict (see `TrainingSAEConfig.from_dict`)."""
        if cls.architecture:
            config_dict = {**config_dict, "architecture": cls.architecture}
        return cls(TrainingSAEConfig.from_dict(config_dict))

    @classmethod
    def _in_own_form(
        cls, cfg_dict: dict[str, Any], state_dict: dict[str, Tensor], source: str
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return cfg_dict, state_dict

    def inference_components(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and tensors of the inference SAE that this one becomes."""
        state_dict = {name: t.detach().clone() for name, t in self.state_dict().items()}
        self.process_state_dict_for_saving(state_dict)
        values = dict(self._file_config())
        factor = state_dict.pop("finetuning_scaling_factor", None)
        if factor is not None:
            state_dict["W_dec"] = state_dict["W_dec"] * factor.unsqueeze(-1)
        values["finetuning_scaling_factor"] = False
        kept = set(SAEConfig.__dataclass_fields__) | {"metadata", "reshape_activations"}
        inference = SAE_CLASSES.get(str(self.cfg.architecture))
        if inference is not None:
            kept |= set(inference.config_class.nested_keys)
        values = {name: value for name, value in values.items() if name in kept}
        metadata = dict(values.get("metadata") or {})
        metadata["sae_lens_version"] = FILE_FORMAT_VERSION
        values["metadata"] = metadata
        return values, state_dict

    def save_inference_model(
        self, path: str | Path, sparsity: Tensor | None = None
    ) -> tuple[Path, Path] | tuple[Path, Path, Path]:
        """Write the folder of the inference SAE: no training keys, everything folded."""
        refuse_unfolded(self)
        values, state_dict = self.inference_components()
        return write_sae_folder(path, values, state_dict, sparsity)
