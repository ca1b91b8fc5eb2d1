"""`ActivationsStore` and what callers import beside it; the home is `sae_lens.activations`."""

from sae_lens.activations.activation_source import ActivationsWithTokens, EpochEnd
from sae_lens.activations.datasets_loading import (
    special_token_ids as _get_special_token_ids,
)
from sae_lens.activations.datasets_loading import (
    validate_pretokenized_dataset_tokenizer,
)
from sae_lens.activations.model_adapters import model_device as _get_model_device
from sae_lens.activations.rows import filter_excluded as _filter_buffer_acts
from sae_lens.activations.rows import permute_together
from sae_lens.activations.store import ActivationsStore
from sae_lens.constants import DTYPE_MAP

__all__ = [
    "DTYPE_MAP",
    "ActivationsStore",
    "ActivationsWithTokens",
    "EpochEnd",
    "_filter_buffer_acts",
    "_get_model_device",
    "_get_special_token_ids",
    "permute_together",
    "validate_pretokenized_dataset_tokenizer",
]
