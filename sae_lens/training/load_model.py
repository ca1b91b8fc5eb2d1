"""Early path of `load_model`; its home is `sae_lens.activations.model_loading`."""

from sae_lens.activations.model_loading import load_model

__all__ = ["load_model"]
