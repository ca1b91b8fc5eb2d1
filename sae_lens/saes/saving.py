"""Saving SAEs and loading them: folders, released SAEs, tensors in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_lens.errors import SAELoadError, stumbling_over
from sae_lens.loading.disk import sae_lens_disk_loader
from sae_lens.loading.inference_form import BATCH_ARCHITECTURES, inference_form
from sae_lens.registry import SAE_CLASSES, SAE_TRAINING_CLASSES, get_sae_class
from sae_lens.saes.config import SAEConfig
from sae_lens.saes.files import write_sae_folder
from sae_lens.saes.weights import weights_without_values
from sae_lens.saes.whitening import refuse_unfolded

if TYPE_CHECKING:
    from typing_extensions import Self

DiskLoader = Callable[..., tuple[dict[str, Any], dict[str, Tensor]]]


class Saving(nn.Module):
    """The part of an SAE that writes it to files and makes one from them."""

    cfg: Any
    architecture: str

    def get_name(self) -> str:
        """`sae_{model_name}_{hook_name}_{d_sae}`."""
        return f"sae_{self.cfg.model_name}_{self.cfg.hook_name}_{self.cfg.d_sae}"

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Change `state_dict` in place into what files hold."""

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Change `state_dict` in place from what files hold into this class's parameters."""

    def save_model(
        self, path: str | Path, sparsity: Tensor | None = None
    ) -> tuple[Path, Path] | tuple[Path, Path, Path]:
        """Write weights and config, and `sparsity` if given, into the folder `path`.

        Each file is written beside its target and renamed, so that a reader never sees half of one.

        Returns:
            The paths of weights, config and, if given, sparsity.

        Raises:
            ValueError: for an SAE in training that works on whitened activations.
        """
        refuse_unfolded(self)
        state_dict = dict(self.state_dict())
        self.process_state_dict_for_saving(state_dict)
        return write_sae_folder(path, self._file_config(), state_dict, sparsity)

    def _file_config(self) -> dict[str, Any]:
        to_file_dict = getattr(self.cfg, "to_file_dict", None)
        return to_file_dict() if to_file_dict is not None else self.cfg.to_dict()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Self:
        """A fresh SAE from a config dict."""
        return cls(cls._config_class().from_dict(config_dict))

    @classmethod
    def _config_class(cls) -> type[SAEConfig]:
        if cls.architecture:
            return get_sae_class(cls.architecture).config_class
        return SAEConfig

    @classmethod
    def load_from_disk(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        converter: DiskLoader = sae_lens_disk_loader,
    ) -> Self:
        """Load an SAE from a folder.

        Args:
            path: the folder.
            device: where the weights go.
            dtype: a name of `DTYPE_MAP` or a torch dtype; None keeps the file's.
            converter: reads another format: `converter(path, device, cfg_overrides)` gives a config
                dict and tensors.

        Raises:
            FileNotFoundError: when the folder or a file in it is missing.
            SAELoadError: when a file is broken, or config and tensors contradict each other.
        """
        overrides: dict[str, Any] = {"device": str(device)}
        if dtype is not None:
            overrides["dtype"] = str(dtype)
        with stumbling_over(path, SAELoadError):
            cfg_dict, state_dict = converter(path, device=device, cfg_overrides=overrides)
            return cls.from_components(cfg_dict, state_dict, source=str(path))

    @classmethod
    def load_from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """The older name of `load_from_disk`."""
        return cls.load_from_disk(path, device=device, dtype=dtype)

    @classmethod
    def from_components(
        cls, cfg_dict: dict[str, Any], state_dict: dict[str, Tensor], source: str = "the given dict"
    ) -> Self:
        """An SAE around tensors that are already in memory (they are taken over, not copied).

        Raises:
            SAELoadError: when keys are missing in the config, or names or shapes of the tensors
                differ from what it describes.
        """
        cfg_dict, state_dict = cls._in_own_form(cfg_dict, dict(state_dict), source)
        try:
            config = cls._config_class().from_dict(cfg_dict)
        except TypeError as error:
            raise SAELoadError(f"The config of {source} is incomplete: {error}.") from error
        if min(config.d_in, config.d_sae) < 1:
            raise SAELoadError(
                f"{source} describes an SAE with d_in={config.d_in} and d_sae={config.d_sae}; both "
                "must be at least 1."
            )
        with weights_without_values():
            sae = cls(config)
        sae.process_state_dict_for_loading(state_dict)
        sae._check_tensors(state_dict, source)
        sae.load_state_dict(state_dict, assign=True)
        for parameter in sae.parameters():
            parameter.requires_grad_(True)
        return sae

    @classmethod
    def _in_own_form(
        cls, cfg_dict: dict[str, Any], state_dict: dict[str, Tensor], source: str
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a file says of the SAE as this kind of class has it."""
        architecture = str(cfg_dict.get("architecture"))
        if architecture in (*SAE_CLASSES, *BATCH_ARCHITECTURES):
            return inference_form(cfg_dict, state_dict, source)
        registered = SAE_TRAINING_CLASSES.get(architecture)
        if registered is None:
            return cfg_dict, state_dict
        # Of one that is only trained under this name, its own class knows what it becomes.
        metadata = {**(cfg_dict.get("metadata") or {}), "training_architecture": architecture}
        trained = registered.sae_class.from_components(
            {**cfg_dict, "metadata": metadata}, state_dict, source
        )
        return trained.inference_components()

    def _check_tensors(self, state_dict: dict[str, Tensor], source: str) -> None:
        expected = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        if expected == found:
            return
        problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
        problems += [f"{name} is not expected" for name in found.keys() - expected.keys()]
        problems += [
            f"{name} has shape {list(found[name])} instead of {list(expected[name])}"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ]
        raise SAELoadError(
            f"The tensors of {source} do not fit its config ({self.cfg.architecture}, d_in "
            f"{self.cfg.d_in}, d_sae {self.cfg.d_sae}): {'; '.join(sorted(problems))}."
        )

    @classmethod
    def from_pretrained(
        cls,
        release: str,
        sae_id: str,
        device: str = "cpu",
        force_download: bool = False,
        converter: Any = None,
        dtype: str | torch.dtype | None = None,
    ) -> Any:
        """Load a released SAE by name, or from a Hugging Face repository.

        Args:
            release: a release of the registry, or a repository id (`user/name`).
            sae_id: the SAE in the release, or the folder in the repository.
            device: where the weights go.
            force_download: fetch again what the cache already holds.
            converter: reads the repository's format instead of the registry's choice.
            dtype: cast the weights; None keeps what the format says.

        Returns:
            `(sae, cfg_dict, log_sparsity or None)`, in a tuple that can also be used as the SAE.

        Raises:
            ValueError: for an unknown release or id.
        """
        from sae_lens.saes.pretrained import from_pretrained

        own: Any = cls
        return from_pretrained(own, release, sae_id, device, force_download, converter, dtype)

    @classmethod
    def from_pretrained_with_cfg_and_sparsity(
        cls,
        release: str,
        sae_id: str,
        device: str = "cpu",
        force_download: bool = False,
        converter: Any = None,
        dtype: str | torch.dtype | None = None,
    ) -> Any:
        """The same tuple as `from_pretrained`, under its 6.x name."""
        return cls.from_pretrained(release, sae_id, device, force_download, converter, dtype)
