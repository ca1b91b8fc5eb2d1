"""SAEs as users of other tools make them, and what those tools do to them.

The tools themselves (SAEDashboard 0.8, SAEBench 0.6, sae-probes 0.4) are not installed here: the
functions below make the calls that their sources make, in their order and with their arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_lens import (
    SAE,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.constants import EMBEDDED_MODEL_NAME
from sae_lens.saes.sae import SAEMetadata
from tests.helpers import randomize

D_SAE = 24
HOOK = "blocks.1.hook_resid_post"
KINDS = ("standard", "gated", "jumprelu", "topk")
_CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5}),
}


def users_sae(kind: str, d_in: int, hook_name: str = HOOK, **fields: Any) -> Any:
    """An SAE built from the per-architecture classes, its origin written into the metadata."""
    torch.manual_seed(0)
    sae_class, config_class, own = _CLASSES[kind]
    sae = sae_class(config_class(d_in=d_in, d_sae=D_SAE, **own, **fields))
    sae.cfg.metadata = SAEMetadata(
        model_name=EMBEDDED_MODEL_NAME, hook_name=hook_name, prepend_bos=True
    )
    randomize(sae)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    return sae.eval()


def converter_of(folder: Path) -> Any:
    """A loader, as `from_pretrained(converter=...)` takes one, that reads a saved folder."""

    def load(repo_id: str, folder_name: str, device: str, force_download: bool, **_: Any) -> Any:
        from sae_lens.loading.disk import sae_lens_disk_loader

        return *sae_lens_disk_loader(folder / folder_name, device=device), None

    return load


@contextmanager
def only_features(sae: Any, features: list[int]) -> Iterator[None]:
    """A dashboard's way to encode some features: narrower parameters for a moment."""
    original: dict[str, Tensor] = {}

    def narrow(name: str, chosen: Any) -> None:
        original[name] = getattr(sae, name).data.clone()
        setattr(sae, name, nn.Parameter(chosen))

    narrow("W_dec", sae.W_dec[features])
    narrow("W_enc", sae.W_enc[:, features])
    architecture = sae.cfg.architecture
    architecture = architecture() if callable(architecture) else architecture
    for name in {
        "standard": ["b_enc"],
        "transcoder": ["b_enc"],
        "jumprelu": ["b_enc", "threshold"],
        "gated": ["b_gate", "r_mag", "b_mag"],
    }[architecture]:
        narrow(name, getattr(sae, name)[features])
    yield
    for name, value in original.items():
        setattr(sae, name, nn.Parameter(value))


_FACTS = (
    "hook_name",
    "context_size",
    "dataset_trust_remote_code",
    "model_name",
    "hook_head_index",
    "exclude_special_tokens",
    "prepend_bos",
)


def standardize(cfg: Any) -> None:
    """A benchmark's first step: one place for what 5.x and 6.x keep in different ones."""

    def find(name: str) -> Any:
        if hasattr(cfg, name):
            return getattr(cfg, name)
        if hasattr(cfg, "metadata") and hasattr(cfg.metadata, name):
            return getattr(cfg.metadata, name)
        return None

    facts = {name: find(name) for name in _FACTS}
    layer = find("hook_layer")
    if layer is None and (number := re.search(r"\d+", str(facts["hook_name"]))):
        layer = int(number.group(0))
    facts["hook_layer"] = layer
    facts["model_from_pretrained_kwargs"] = find("model_from_pretrained_kwargs") or {}
    for name, value in facts.items():
        setattr(cfg, name, value)
    cfg.architecture_str = cfg.architecture() if callable(cfg.architecture) else cfg.architecture
    metadata = cfg.metadata if hasattr(cfg, "metadata") else SAEMetadata()
    for name, value in facts.items():
        setattr(metadata, name, value)
    cfg.metadata = metadata


def saved(sae: SAE, folder: Path) -> Path:
    """The SAE on disk."""
    sae.save_model(folder)
    return folder
