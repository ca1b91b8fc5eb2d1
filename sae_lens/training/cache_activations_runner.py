"""Early path of the cache runner; its home is `sae_lens.cache_activations_runner`."""

from sae_lens.cache_activations_runner import CacheActivationsRunner

__all__ = ["CacheActivationsRunner"]
