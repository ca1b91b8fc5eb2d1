"""`LMSparseAutoencoderSessionloader`: model, SAE and data in one call, as before version 3."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from sae_lens.activations.model_loading import load_model
from sae_lens.activations.store import ActivationsStore
from sae_lens.activations.store_settings import sae_fact
from sae_lens.saes.base import SAE
from sae_lens.saes.training import TrainingSAE
from sae_lens.training.sparse_autoencoder import load_sae_folder
from sae_lens.transformer_lens_versions import HookedRootModule

Session = tuple[HookedRootModule, SAE, ActivationsStore]


class LMSparseAutoencoderSessionloader:
    """Deprecated: use `load_model`, `SAE.load_from_disk` and `ActivationsStore`.

    Args:
        cfg: the config of a run, or of an SAE.
    """

    def __init__(self, cfg: Any):
        warnings.warn(
            "LMSparseAutoencoderSessionloader is deprecated; use load_model, SAE.load_from_disk "
            "(or SAE.from_pretrained) and ActivationsStore.from_sae (or .from_config).",
            DeprecationWarning,
            stacklevel=2,
        )
        self.cfg = cfg

    def load_sae_training_group_session(self, path: str | Path | None = None) -> Session:
        """The model, an SAE and the data of the config.

        Args:
            path: folder of the SAE; without it there is a fresh one.

        Raises:
            ValueError: when the config names no dataset or no model.
        """
        cfg = self.cfg
        if not sae_fact(cfg, "dataset_path"):
            raise ValueError(
                "The config names no dataset (dataset_path), so there are no activations to load. "
                "Use load_model and SAE.load_from_disk, and ActivationsStore.from_sae with "
                "dataset=."
            )
        device = str(sae_fact(cfg, "device", "cpu"))
        model = self.get_model(sae_fact(cfg, "model_name"))
        if path is not None:
            sae = load_sae_folder(path, device)
        elif _is_runner_config(cfg):
            sae = TrainingSAE(cfg.training_sae_config())
        else:
            sae = SAE(cfg)
        if _is_runner_config(cfg):
            store = ActivationsStore.from_config(model, cfg)
        else:
            store = ActivationsStore.from_sae(model, sae, device=device)
        return model, sae, store

    @classmethod
    def load_pretrained_sae(cls, path: str | Path, device: str = "cpu") -> Session:
        """The SAE in a folder, with the model and data that its config names."""
        sae = load_sae_folder(path, device)
        loader = cls(sae.cfg)
        model, _, store = loader.load_sae_training_group_session(path)
        return model, sae, store

    load_session_from_pretrained = load_pretrained_sae

    def get_model(self, model_name: str | None) -> HookedRootModule:
        """The language model of that name, of the class and on the device of the config.

        Raises:
            ValueError: without a name.
        """
        if not model_name:
            raise ValueError("The config names no model (model_name).")
        device = str(sae_fact(self.cfg, "device", "cpu"))
        model = load_model(
            sae_fact(self.cfg, "model_class_name", "HookedTransformer"),
            model_name,
            device=device,
            model_from_pretrained_kwargs=sae_fact(self.cfg, "model_from_pretrained_kwargs"),
        )
        return model.to(device)


def _is_runner_config(cfg: Any) -> bool:
    return hasattr(cfg, "training_sae_config")
