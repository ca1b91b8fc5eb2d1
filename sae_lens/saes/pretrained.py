"""Released SAEs as objects: what `SAE.from_pretrained` returns, and the functions before it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_lens.errors import SAELoadError, stumbling_over
from sae_lens.loading import directory
from sae_lens.loading.early_downloads import (
    convert_connor_rob_config,
    download_sae_from_hf,
    load_sparsity,
)
from sae_lens.loading.load import load_pretrained
from sae_lens.saes.base import SAE
from sae_lens.saes.training import TrainingSAE

AnySAE = TypeVar("AnySAE", bound=SAE)

_OWN_NAMES = frozenset({"sae", "cfg_dict", "sparsity"})


class PretrainedSAE(tuple[Any, ...]):
    """`(sae, cfg_dict, log sparsity or None)`, usable as the SAE too.

    The 5.x call `sae, cfg_dict, sparsity = SAE.from_pretrained(...)` unpacks it; the 6.x call
    `sae = SAE.from_pretrained(...)` keeps it and goes on as with an SAE: attributes, calls,
    assignments and deletions reach the SAE. The first such use of an object warns, since some
    places (a module that is to hold the SAE, `isinstance`) need the SAE itself: `result.sae`.
    """

    def __new__(cls, sae: SAE, cfg_dict: dict[str, Any], sparsity: Tensor | None) -> PretrainedSAE:
        """Wrap the three values."""
        return super().__new__(cls, (sae, cfg_dict, sparsity))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    @property
    def sae(self) -> Any:
        """The SAE itself."""
        return self[0]

    @property
    def cfg_dict(self) -> dict[str, Any]:
        """The complete config dict, possibly with keys that the SAE's config lacks."""
        return self[1]

    @property
    def sparsity(self) -> Tensor | None:
        """log10 firing frequencies `[d_sae]`, where they were published."""
        return self[2]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        value = getattr(self.sae, name)
        self._warn_once()
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN_NAMES:
            raise AttributeError(f"{name!r} of a loaded SAE cannot be replaced; unpack it instead.")
        self._warn_once()
        setattr(self.sae, name, value)

    def __delattr__(self, name: str) -> None:
        if name in _OWN_NAMES:
            raise AttributeError(f"{name!r} of a loaded SAE cannot be deleted.")
        self._warn_once()
        delattr(self.sae, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the SAE."""
        self._warn_once()
        return self.sae(*args, **kwargs)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.sae)})

    def _warn_once(self) -> None:
        if self.__dict__.get("warned"):
            return
        self.__dict__["warned"] = True
        warnings.warn(
            "The result of SAE.from_pretrained is a tuple (sae, cfg_dict, sparsity) and is being "
            "used as the SAE. That works; to be explicit, unpack it or take its first value.",
            DeprecationWarning,
            stacklevel=3,
        )


def from_pretrained(
    cls: type[SAE],
    release: str,
    sae_id: str,
    device: str = "cpu",
    force_download: bool = False,
    converter: Any = None,
    dtype: str | torch.dtype | None = None,
) -> PretrainedSAE:
    """`SAE.from_pretrained`, for the class that it was called on.

    The norm factor of the registry is folded into weights that were trained on scaled activations;
    a fine-tuned factor of an inference SAE is folded into its decoder.

    Raises:
        ValueError: unknown release or id, or files that are no SAE of this version.
        FileNotFoundError: the repository lacks the files.
    """
    where = f"{release}/{sae_id}"
    with stumbling_over(where, SAELoadError):
        cfg_dict, state_dict, sparsity = load_pretrained(
            release, sae_id, device, force_download, converter, dtype
        )
        if not issubclass(cls, TrainingSAE):
            fold_finetuning_factor(cfg_dict, state_dict)
        sae = cls.from_components(cfg_dict, state_dict, source=where)
    if cfg_dict.get("normalize_activations") == "expected_average_only_in":
        factor = directory.get_norm_scaling_factor(release, sae_id)
        if factor is None:
            warnings.warn(
                f"The SAE {where} was trained on activations scaled to an average norm, but the "
                "factor is not known. Scale its inputs, or call "
                "fold_activation_norm_scaling_factor with the factor.",
                UserWarning,
                stacklevel=3,
            )
        else:
            sae.fold_activation_norm_scaling_factor(factor)
            cfg_dict["normalize_activations"] = "none"
    return PretrainedSAE(sae, cfg_dict, sparsity)


def fold_finetuning_factor(cfg_dict: dict[str, Any], state_dict: dict[str, Tensor]) -> None:
    """Multiply the decoder's rows by a fine-tuned factor and drop it, in place.

    `(f * a) @ W_dec == a @ (f[:, None] * W_dec)`: the SAE computes the same, and files written from
    it can be read by versions that know no such factor.
    """
    factor = state_dict.pop("finetuning_scaling_factor", None)
    if factor is not None:
        state_dict["W_dec"] = state_dict["W_dec"] * factor.unsqueeze(-1)
    cfg_dict["finetuning_scaling_factor"] = False


def load_sae_from_local_path(path: str | Path) -> tuple[SAE, Tensor | None]:
    """(SAE, log sparsity or None) from a folder in our own format."""
    sae = SAE.load_from_disk(path)
    try:
        return sae, load_sparsity(path)
    except FileNotFoundError:
        return sae, None


def get_gpt2_res_jb_saes(
    hook_point: str | None = None, device: str = "cpu"
) -> tuple[dict[str, SAE], dict[str, Tensor | None]]:
    """The residual-stream SAEs for GPT-2 small: all thirteen, or the one at `hook_point`.

    Returns:
        SAEs and log sparsities by hook name.
    """
    repo_id = directory.registry()["gpt2-small-res-jb"].repo_id
    hooks = [hook_point] if hook_point else list(directory.registry()["gpt2-small-res-jb"].saes)
    saes: dict[str, SAE] = {}
    sparsities: dict[str, Tensor | None] = {}
    for hook in hooks:
        config_path, _, _ = download_sae_from_hf(repo_id, hook)
        sae, sparsity = load_sae_from_local_path(Path(config_path).parent)
        saes[hook], sparsities[hook] = sae.to(device), sparsity
    return saes, sparsities


def get_gpt2_small_ckrk_attn_out_saes() -> dict[str, SAE]:
    """The attention-output SAEs for GPT-2 small by hook name."""
    release = "gpt2-small-hook-z-kk"
    saes: dict[str, SAE] = {}
    for sae_id in directory.registry()[release].saes:
        sae, _, _ = from_pretrained(SAE, release, sae_id)
        saes[sae.cfg.hook_name] = sae
    return saes


def convert_connor_rob_sae_to_our_saelens_format(
    state_dict: dict[str, Tensor], config: dict[str, int | str]
) -> SAE:
    """An SAE from the tensors and config of an attention-output SAE for GPT-2 small."""
    cfg_dict, tensors = convert_connor_rob_config(state_dict, config)
    return SAE.from_components(cfg_dict, tensors)
