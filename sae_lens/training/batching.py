"""Early path of the packing of tokens; its home is `sae_lens.activations.packing`."""

from sae_lens.activations.packing import concat_and_batch_sequences

__all__ = ["concat_and_batch_sequences"]
