"""Loading of language models; the home is `sae_lens.activations.model_loading`."""

from sae_lens.activations.model_loading import (
    HookedProxyLM,
    _extract_logits_from_output,
    get_hook_fn,
    load_model,
)

__all__ = ["HookedProxyLM", "_extract_logits_from_output", "get_hook_fn", "load_model"]
