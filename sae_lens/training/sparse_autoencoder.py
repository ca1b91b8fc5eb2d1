"""`SparseAutoencoder`, the name of every SAE before version 3."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from sae_lens.saes.base import SAE
from sae_lens.saes.training import TrainingSAE

_OLD_SUFFIXES = (".pt", ".pkl.gz", ".pkl")


class _StandsForEverySAE(type):
    """`SparseAutoencoder(cfg)` makes an ordinary SAE, and every SAE is one of its instances."""

    def __call__(cls, cfg: Any) -> Any:
        """A training SAE from a runner config or a training SAE's config, else an SAE."""
        warnings.warn(
            "SparseAutoencoder(cfg) is deprecated; use TrainingSAE(cfg) for training, or SAE(cfg).",
            DeprecationWarning,
            stacklevel=2,
        )
        if hasattr(cfg, "training_sae_config"):
            return TrainingSAE(cfg.training_sae_config())
        return TrainingSAE(cfg) if hasattr(cfg, "get_base_sae_cfg_dict") else SAE(cfg)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, SAE)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, SAE)


class SparseAutoencoder(metaclass=_StandsForEverySAE):
    """Deprecated: use `SAE` and `TrainingSAE`, of which the objects made here are."""

    @staticmethod
    def from_pretrained(release: str, sae_id: str, device: str = "cpu") -> Any:
        """Deprecated: the SAE alone, the first value of `SAE.from_pretrained`."""
        warnings.warn(
            "SparseAutoencoder.from_pretrained is deprecated; use SAE.from_pretrained, which "
            "returns (sae, cfg_dict, sparsity).",
            DeprecationWarning,
            stacklevel=2,
        )
        return SAE.from_pretrained(release, sae_id, device=device)[0]

    @staticmethod
    def load_from_pretrained(path: str | Path, device: str = "cpu") -> SAE:
        """Deprecated: use `SAE.load_from_disk`.

        Raises:
            ValueError: for a pickled file of the first releases.
        """
        warnings.warn(
            "SparseAutoencoder.load_from_pretrained is deprecated; use SAE.load_from_disk.",
            DeprecationWarning,
            stacklevel=2,
        )
        return load_sae_folder(path, device)


def load_sae_folder(path: str | Path, device: str) -> SAE:
    """An SAE from its folder.

    Raises:
        ValueError: for a pickled file of the first releases.
    """
    if str(path).endswith(_OLD_SUFFIXES):
        raise ValueError(
            f"{path} is a pickled SAE of the first releases, which is not loaded any more: a "
            "pickle can run any code. Convert it once, with the release that wrote it: save its "
            "state dict as sae_weights.safetensors and its config as cfg.json in one folder, and "
            "load that folder."
        )
    return SAE.load_from_disk(path, device=device)
