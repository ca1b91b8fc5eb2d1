"""Language models by class and name."""

from __future__ import annotations

import logging
from typing import Any

import torch

from sae_lens.activations.hf_adapter import hooked_causal_lm
from sae_lens.activations.proxy_lm import (
    HookedProxyLM,
    _extract_logits_from_output,
    get_hook_fn,
)
from sae_lens.constants import EMBEDDED_MODEL_NAME
from sae_lens.transformer_lens_versions import HookedRootModule

logger = logging.getLogger(__name__)

MODEL_CLASSES = ("HookedTransformer", "HookedMamba", "AutoModelForCausalLM")


def load_model(
    model_class_name: str,
    model_name: str,
    device: str | torch.device | None = None,
    model_from_pretrained_kwargs: dict[str, Any] | None = None,
) -> HookedRootModule:
    """Load a language model with hooks.

    Args:
        model_class_name: "HookedTransformer", "HookedMamba" (needs the `mamba` extra) or
            "AutoModelForCausalLM" (any Hugging Face causal language model, with hooks under the
            names of its modules; for the main families also under TransformerLens's names).
        model_name: a name the class knows. The embedded model's name loads without network.
        device: where to put it.
        model_from_pretrained_kwargs: passed to the class's `from_pretrained`. With `n_devices`
            above 1 the device becomes "cuda".

    Raises:
        ValueError: for an unknown class, or when the package of the class is not installed.
    """
    kwargs = dict(model_from_pretrained_kwargs or {})
    if (kwargs.get("n_devices") or 1) > 1:
        device = "cuda"
        logger.info("n_devices is %s: the model is spread over CUDA devices.", kwargs["n_devices"])

    if model_class_name == "HookedTransformer":
        from transformer_lens import HookedTransformer

        if model_name == EMBEDDED_MODEL_NAME:
            from sae_lens.activations.embedded import load_embedded_model

            kwargs.pop("n_devices", None)
            return load_embedded_model(HookedTransformer, device=device, **kwargs)
        return HookedTransformer.from_pretrained_no_processing(
            model_name=model_name, device=device, **kwargs
        )
    if model_class_name == "HookedMamba":
        try:
            from mamba_lens import HookedMamba  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                "HookedMamba needs the package mamba_lens, which is not installed. Install it with "
                "pip install sae-lens[mamba]."
            ) from None
        return HookedMamba.from_pretrained(model_name, device=device, **kwargs)
    if model_class_name == "AutoModelForCausalLM":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(model_name, **kwargs)
        if device is not None:
            model = model.to(device)
        return hooked_causal_lm(model.eval(), AutoTokenizer.from_pretrained(model_name))
    raise ValueError(
        f"Unknown model class {model_class_name!r}: allowed are {', '.join(MODEL_CLASSES)}. Pass a "
        "model of another kind directly, as override_model."
    )


__all__ = [
    "MODEL_CLASSES",
    "HookedProxyLM",
    "_extract_logits_from_output",
    "get_hook_fn",
    "load_model",
]
