"""Steering: add a feature's decoder direction to a model's activations.

x ← x + strength · direction, at the hook the SAE belongs to (Turner et al. 2023, "Activation
Addition"; with SAE features Templeton et al. 2024, "Scaling Monosemanticity").
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens.analysis.interventions import Site, fact, pick, put
from sae_lens.errors import InvalidArgumentError


def feature_direction(sae: Any, feature: int, normalize: bool = False) -> Float[Tensor, " d_in"]:
    """The decoder row of a feature, in the space of the model's activations.

    Args:
        sae: any SAE.
        feature: which row of `W_dec`.
        normalize: scale it to unit norm, so that strengths of different features compare.

    Raises:
        InvalidArgumentError: (a `ValueError`) when there is no such feature.
    """
    d_sae = sae.W_dec.shape[0]
    if not 0 <= feature < d_sae:
        raise InvalidArgumentError(
            f"There is no feature {feature}: the SAE has {d_sae}, numbered from 0."
        )
    direction = sae.W_dec[feature].detach()
    return direction / direction.norm().clamp(min=1e-12) if normalize else direction


class SteeringHook:
    """A forward hook that adds a vector to an activation, everywhere or at some positions.

    Args:
        vector: what to add, [d].
        site: the hook, or one head of it.
        positions: indices into the prompt; None for all. While generating with a cache the model
            sees one new token at a time, so only None steers what is generated.
    """

    def __init__(
        self, vector: Float[Tensor, " d"], site: Site, positions: list[int] | slice | None = None
    ):
        self.vector, self.site, self.positions = vector, site, positions

    def __call__(self, activations: Tensor, hook: Any) -> Tensor:
        """The activations with the vector added; the argument is not changed."""
        old = pick(activations, self.site)
        kept = torch.zeros(old.shape[:2], dtype=torch.bool, device=old.device)
        kept[:, slice(None) if self.positions is None else self.positions] = True
        new = old + self.vector.to(device=old.device, dtype=old.dtype)
        return put(activations, new, self.site, kept)


def steering_hook(
    model: HookedTransformer,
    sae: Any,
    feature: int,
    strength: float,
    normalize: bool = False,
    positions: list[int] | slice | None = None,
) -> tuple[str, Callable[..., Tensor]]:
    """Hook name and hook function that steer, for `model.run_with_hooks` and `model.hooks`.

    Where an SAE is attached at the hook (`HookedSAETransformer`), the direction is added to what
    that SAE puts out.

    Warns:
        UserWarning: when that SAE's error term is on. The error is measured against the model's
            own activation, so steering that reaches the SAE's input would be cancelled by it;
            added behind the SAE, as here, it is not.

    Raises:
        ValueError: when the model has no such hook, or the SAE no such feature.
    """
    name = fact(sae.cfg, "hook_name_out") or sae.cfg.hook_name
    is_output = name != sae.cfg.hook_name
    head = fact(sae.cfg, "hook_head_index_out" if is_output else "hook_head_index")
    vector = strength * feature_direction(sae, feature, normalize)
    attached = getattr(model, "acts_to_saes", {}).get(name)
    if attached is None:
        if name not in model.hook_dict:
            raise InvalidArgumentError(
                f"The model has no hook {name!r} to steer at; its hooks are in model.hook_dict."
            )
        return name, SteeringHook(vector, Site(name, head), positions)
    if attached.use_error_term:
        warnings.warn(
            f"The SAE attached at {name!r} has its error term on, which restores the model's own "
            "activation and would cancel steering of the SAE's input. The direction is added to "
            "the SAE's output instead; detach the SAE or switch the error term off to steer what "
            "it sees.",
            UserWarning,
            stacklevel=2,
        )
    output = f"{name}.hook_sae_output"
    # Behind a picked or flattened head the attached SAE's output has no head axis any more.
    return output, _OutputSteeringHook(vector, Site(output, head), positions)


class _OutputSteeringHook(SteeringHook):
    """At an attached SAE's output, whose heads may be flattened or picked already."""

    def __call__(self, activations: Tensor, hook: Any) -> Tensor:
        if activations.ndim < 4:
            flat = SteeringHook(self.vector, Site(self.site.hook_name, None), self.positions)
            return flat(activations, hook)
        return super().__call__(activations, hook)


@contextmanager
def steer(
    model: HookedTransformer,
    sae: Any,
    feature: int,
    strength: float,
    normalize: bool = False,
    positions: list[int] | slice | None = None,
) -> Iterator[HookedTransformer]:
    """Steer every forward pass inside the block, generation included; see `steering_hook`."""
    hook = steering_hook(model, sae, feature, strength, normalize, positions)
    with model.hooks(fwd_hooks=[hook]):
        yield model


def steered_logits(
    model: HookedTransformer,
    prompt: str | list[str] | Tensor,
    sae: Any,
    feature: int,
    strength: float,
    normalize: bool = False,
    positions: list[int] | slice | None = None,
    **forward_kwargs: Any,
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of a prompt while steering; see `steering_hook`."""
    with steer(model, sae, feature, strength, normalize, positions):
        return model(prompt, return_type="logits", **forward_kwargs)


def steered_generate(
    model: HookedTransformer,
    prompt: str | Tensor,
    sae: Any,
    feature: int,
    strength: float,
    normalize: bool = False,
    **generate_kwargs: Any,
) -> Any:
    """What `model.generate` returns while steering, prompt and generated tokens alike."""
    with steer(model, sae, feature, strength, normalize):
        return model.generate(prompt, **generate_kwargs)
