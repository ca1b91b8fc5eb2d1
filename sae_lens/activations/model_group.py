"""Several language models that read the same tokens: a base model and ones fine-tuned from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_lens.activations.model_adapters import vocabulary_size


class ModelGroup:
    """Models side by side; asked for anything else, it answers as the first of them.

    Args:
        models: two or more.

    Raises:
        ValueError: when they do not read the same tokens.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        if len(models) < 2:
            raise ValueError(f"A group needs at least two models; {len(models)} were given.")
        self.models = tuple(models)
        for number, other in enumerate(self.models[1:], start=2):
            _require_same_tokens(self.models[0], other, number)

    def __getattr__(self, name: str) -> Any:
        if name == "models":  # not there yet, while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.models[0], name)


def models_of(model: Any) -> tuple[Any, ...]:
    """The models of a group; a model of its own as the only one."""
    return model.models if isinstance(model, ModelGroup) else (model,)


def _require_same_tokens(first: Any, other: Any, number: int) -> None:
    sizes = vocabulary_size(first), vocabulary_size(other)
    if None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(
            f"The first model has a vocabulary of {sizes[0]} tokens, model {number} one of "
            f"{sizes[1]}. Only models that read the same tokens can share features."
        )
    vocabularies = [_vocabulary(model) for model in (first, other)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise ValueError(
            f"Model {number} has another tokenizer than the first: the same ids mean other text. "
            "Only models that read the same tokens can share features."
        )


def _vocabulary(model: Any) -> Any:
    get_vocab = getattr(getattr(model, "tokenizer", None), "get_vocab", None)
    return None if get_vocab is None else get_vocab()
