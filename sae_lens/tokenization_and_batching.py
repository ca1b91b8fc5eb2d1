"""Packing of token sequences into rows; the home is `sae_lens.activations.packing`."""

from sae_lens.activations.packing import _add_tokens_to_batch, concat_and_batch_sequences

__all__ = ["_add_tokens_to_batch", "concat_and_batch_sequences"]
