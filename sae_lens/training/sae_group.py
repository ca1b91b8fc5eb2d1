"""Several SAEs under their names, and the function that trained them, as before version 3."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from typing_extensions import Self

from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.saes.base import SAE
from sae_lens.saes.training import TrainingSAE
from sae_lens.training.sparse_autoencoder import load_sae_folder

# Of these a config could hold a list, one SAE being trained for each value.
_ONCE_LISTS = (
    "hook_name", "hook_layer", "hook_head_index", "d_sae", "expansion_factor", "l1_coefficient",
    "lp_norm", "lr", "lr_scheduler_name", "b_dec_init_method", "train_batch_size_tokens",
)  # fmt: skip


class SparseAutoencoderDictionary:
    """Deprecated: use a `dict` of SAEs.

    Args:
        saes: SAEs by name; or the config of a run, for one fresh training SAE.

    Raises:
        ValueError: for a config with lists of hyper-parameters.
    """

    def __init__(self, saes: Mapping[str, SAE] | Any):
        warnings.warn(
            "SparseAutoencoderDictionary is deprecated; use a dict of SAEs.",
            DeprecationWarning,
            stacklevel=2,
        )
        if isinstance(saes, Mapping):
            self.autoencoders: dict[str, SAE] = dict(saes)
            return
        lists = [name for name in _ONCE_LISTS if isinstance(getattr(saes, name, None), list)]
        if lists:
            raise ValueError(
                f"The config has lists of hyper-parameters ({', '.join(lists)}), which are not "
                "supported any more. Make one config for each value and run them one by one."
            )
        sae = TrainingSAE(saes.training_sae_config())
        self.autoencoders = {f"{saes.model_name}_{saes.hook_name}_{saes.d_sae}": sae}

    def __getitem__(self, name: str) -> SAE:
        return self.autoencoders[name]

    def __iter__(self) -> Iterator[tuple[str, SAE]]:
        return iter(self.autoencoders.items())

    def __len__(self) -> int:
        return len(self.autoencoders)

    def to(self, device: str | torch.device) -> Self:
        """Move every SAE."""
        for sae in self.autoencoders.values():
            sae.to(device)
        return self

    @classmethod
    def load_from_pretrained(cls, path: str | Path, device: str = "cpu") -> Self:
        """The SAE in a folder, or those in its sub-folders, under the folders' names.

        Raises:
            FileNotFoundError: when there is none.
        """
        folder = Path(path)
        folders = [folder] if (folder / SAE_CFG_FILENAME).exists() else sorted(folder.glob("*/"))
        saes = {
            found.name: load_sae_folder(found, device)
            for found in folders
            if (found / SAE_CFG_FILENAME).exists()
        }
        if not saes and not str(path).endswith((".pt", ".pkl.gz", ".pkl")):
            raise FileNotFoundError(f"There is no SAE (no {SAE_CFG_FILENAME}) in {path}.")
        return cls(saes or {folder.name: load_sae_folder(folder, device)})


def train_sae_group_on_language_model(*_: Any, **__: Any) -> NoReturn:
    """Gone: use `SAETrainer` for each SAE.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "train_sae_group_on_language_model is gone: SAEs are trained one by one. Use "
        "SAETrainer(...).fit(), or SAETrainingRunner(cfg).run() for a whole run."
    )
