"""Early path of the pretokenize runner; its home is `sae_lens.pretokenize_runner`."""

from sae_lens.pretokenize_runner import (
    PretokenizedDatasetMetadata,
    PretokenizeRunner,
    metadata_from_config,
    pretokenize_dataset,
    pretokenize_runner,
    push_to_hugging_face_hub,
)

__all__ = [
    "PretokenizeRunner",
    "PretokenizedDatasetMetadata",
    "metadata_from_config",
    "pretokenize_dataset",
    "pretokenize_runner",
    "push_to_hugging_face_hub",
]
