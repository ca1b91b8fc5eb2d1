"""Early path of the activation functions; their home is `sae_lens.saes.activation_fns`."""

from sae_lens.saes.activation_fns import TopK, get_activation_fn

__all__ = ["TopK", "get_activation_fn"]
