"""From the name of an SAE to all that looking at it needs: the SAE, its model, its text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sae_lens.activations.datasets_loading import load_text_dataset
from sae_lens.activations.model_group import ModelGroup
from sae_lens.activations.model_loading import load_model
from sae_lens.analysis.interventions import fact
from sae_lens.constants import EMBEDDED_DATASET_NAME
from sae_lens.loading.directory import get_pretrained_saes_directory
from sae_lens.saes.base import SAE


def default_device() -> str:
    """The best device there is: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class ModelLoader:
    """Loads the model of an SAE, keeping it while its name and settings stay the same.

    Args:
        device: where the model is put.
        load: what loads it, with the arguments of `load_model`.
    """

    def __init__(self, device: str, load: Callable[..., Any] = load_model):
        self.device = device
        self._load = load
        self._key: Any = None
        self._model: Any = None

    def for_sae(self, sae: Any) -> Any:
        """The language model that an SAE belongs to, or the group of those that it reads.

        Raises:
            ValueError: when the SAE does not say which one.
        """
        cfg = sae.cfg
        if not cfg.model_name:
            raise ValueError("The SAE does not say which model it belongs to; pass the model.")
        class_name = fact(cfg, "model_class_name") or "HookedTransformer"
        kwargs = dict(cfg.model_from_pretrained_kwargs or {})
        names = tuple(getattr(cfg, "model_names", ())) or (cfg.model_name,)
        key = (class_name, names, tuple(sorted(kwargs.items())))
        if key != self._key:
            self._model = None  # make room before the next one is loaded
            models = [
                self._load(
                    class_name, name, device=self.device, model_from_pretrained_kwargs=kwargs
                )
                for name in names
            ]
            self._model = models[0] if len(models) == 1 else ModelGroup(models)
            self._key = key
        return self._model


def text_for(
    sae: Any, dataset: str | None = None, split: str | None = None
) -> tuple[Any, str, str]:
    """Text to look at an SAE on.

    Args:
        sae: the SAE.
        dataset: its path; that of the SAE's training by default.
        split: part of it; by default "heldout" of the text that comes with the package, "train" of
            any other.

    Returns:
        (the rows, streamed; the path; the split).

    Raises:
        ValueError: when neither the caller nor the SAE names a dataset.
    """
    path = dataset or sae.cfg.dataset_path
    if not path:
        raise ValueError("The SAE names no dataset; pass one.")
    if split is None:
        split = "heldout" if path == EMBEDDED_DATASET_NAME else "train"
    return load_text_dataset(path, split=split, streaming=True), path, split


def load_target(
    target: str | Path, sae_id: str | None = None, device: str = "cpu"
) -> tuple[SAE, str, str]:
    """An SAE by folder or by name.

    Args:
        target: a folder with an SAE, a release, or release and id in one ("release/id").
        sae_id: the SAE's id in the release.
        device: where to put it.

    Returns:
        (the SAE; what it is from; its name there, "" for a folder).

    Raises:
        ValueError: when the target is neither a folder nor a release with an id.
    """
    target, folder = str(target), Path(target)
    if sae_id is None and folder.is_dir():
        return SAE.load_from_disk(str(folder), device=device), folder.name, ""
    if sae_id is None:
        parts = target.split("/")
        # Releases of the registry have no slash in their names, repositories have one.
        n_release = 1 if parts[0] in get_pretrained_saes_directory() else 2
        release, sae_id = "/".join(parts[:n_release]), "/".join(parts[n_release:])
        if not sae_id:
            raise ValueError(
                f"{target!r} is neither a folder nor a release with an id. Give the folder of an "
                "SAE, or RELEASE/ID as `sae-lens list` shows them."
            )
        target = release
    return SAE.from_pretrained(target, sae_id, device=device)[0], target, sae_id
