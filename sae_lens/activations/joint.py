"""Activations of several hooks of one or more models at each token, side by side in a row.

For SAEs that read several hooks at once: crosscoders and cross-layer transcoders. What is read
comes first in a row, then what else is to be predicted. Mixing, epochs, state and filters are those
of every `ActivationsStore`, for rows of that width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.activations import scaling
from sae_lens.activations.model_adapters import activations_at_hooks, model_device, require_hook
from sae_lens.activations.model_group import models_of
from sae_lens.activations.rows import require_inputs_first, require_one_for_each_token
from sae_lens.activations.store import ActivationsStore
from sae_lens.hook_names import layer_of

Sites = Sequence[tuple[int, str]]


class JointActivationsStore(ActivationsStore):
    """Serves rows of the activations of several hooks.

    Args:
        model: a model, or a `ModelGroup`.
        sites: what is read: numbers of models and names of hooks.
        target_sites: what else a row holds, after that.
        settings: those of `ActivationsStore`; `d_in` is the width at every hook.

    Raises:
        ValueError: for cached activations of several models, or without a column for each hook.
    """

    def __init__(
        self, model: Any, *, sites: Sites, target_sites: Sites = (), **settings: Any
    ) -> None:
        if settings.get("cached_activations_path") is not None and sites[-1][0] > 0:
            raise ValueError(
                "Hooks of several models cannot be read from cached activations, which are of one "
                "model; set use_cached_activations=False."
            )
        self.n_read = len(sites)
        self.sites = (*sites, *target_sites)
        self.width = settings["d_in"]
        names = [name for _, name in self.sites]
        super().__init__(
            model,
            **{
                **settings,
                "hook_name": names[0],
                "hook_layer": max(layer_of(name) for name in names),
                "hook_head_index": None,
                "d_in": self.width * len(names),
            },
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Of every activation in a row."""
        return (self.width,) * len(self.sites)

    @classmethod
    def _settings_of_run(cls, model: Any, cfg: Any, override_dataset: Any) -> dict[str, Any]:
        if cfg.hook_name != cfg.sae.sites[0][1]:
            raise ValueError(
                f"hook_name={cfg.hook_name!r} is not the first of hook_names="
                f"{[name for _, name in cfg.sae.sites]}; leave hook_name out."
            )
        return {**super()._settings_of_run(model, cfg, override_dataset), **_sites_of(cfg.sae)}

    @classmethod
    def _settings_of_sae(
        cls, model: Any, sae: Any, context_size: int | None, dataset: Any
    ) -> dict[str, Any]:
        settings = super()._settings_of_sae(model, sae, context_size, dataset)
        return {**settings, **_sites_of(sae.cfg)}

    def _widths_of_hooks(self) -> dict[str, int]:
        return {name: self.width for _, name in self.sites}

    @torch.no_grad()
    def check_model(self) -> None:
        """Run one prompt through the models to check hooks, their order and their widths.

        Raises:
            ValueError: when a hook does not exist or has another length, or what is predicted runs
                before what is read.
            RuntimeError: when the widths are others.
        """
        # of full length, or a hook with another axis in the place of positions might look right
        self.pause_prefetching()
        self._require_model_fits()
        shape = (1, self.context_size)
        tokens = torch.zeros(shape, dtype=torch.long, device=model_device(self.model))
        self._run_model(tokens)
        reads, writes = self.sites[: self.n_read], self.sites[self.n_read :]
        if writes:
            inputs, outputs = ([name for _, name in part] for part in (reads, writes))
            require_inputs_first(self.model, tokens, inputs, outputs, self.model_kwargs)

    def _new_factor_estimate(self) -> scaling.FactorEstimate:
        """The factor of each column: sqrt(width) / mean norm of the activations of its hook."""
        return scaling.FactorEstimate(self.width, one_for_each=True)

    def _require_model_fits(self) -> None:
        super()._require_model_fits()
        models = models_of(self.model)
        n_named = 1 + max(number for number, _ in self.sites)
        if len(models) != n_named:
            raise ValueError(
                f"The hooks are those of {n_named} models, and {len(models)} are given. Name them "
                "all in model_names, or pass them all."
            )
        for number, name in self.sites:
            require_hook(models[number], name)

    def _run_model(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context w"]:
        found = read_sites(
            self.model,
            tokens,
            self.sites,
            self.model_kwargs,
            autocast=self.autocast_lm,
            fused=self.fused_forward,
        )
        widths = [acts.shape[-1] for acts in found]
        if set(widths) != {self.width}:
            listed = ", ".join(
                f"{name!r} {width}" for (_, name), width in zip(self.sites, widths, strict=True)
            )
            raise RuntimeError(
                f"d_in is {self.width} and must be the width at every hook; the widths are: "
                f"{listed}. Set d_in to a width that all of them have, or choose other hooks."
            )
        return torch.cat(found, dim=-1)


def read_sites(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    sites: Sites,
    model_kwargs: dict[str, Any],
    *,
    autocast: bool = False,
    fused: bool = True,
) -> list[Float[Tensor, "batch pos d"]]:
    """The activations at several hooks of one or more models, heads flattened, on one device.

    Each model runs once, as far as its last hook.

    Raises:
        ValueError: when a hook is not in its model, does not run, or has another length.
    """
    models = models_of(model)
    device = model_device(models[0])
    found: dict[tuple[int, str], Tensor] = {}
    for number, one in enumerate(models):
        names = [name for of_model, name in sites if of_model == number]
        if not names:
            continue
        place = model_device(one)
        with torch.autocast(place.type, dtype=torch.bfloat16, enabled=autocast):
            last = max(layer_of(name) for name in names) + 1
            acts = activations_at_hooks(
                one, tokens.to(place), names, last, model_kwargs, fused=fused
            )
        require_one_for_each_token(tokens, acts)
        found |= {(number, name): acts[name].flatten(2).to(device) for name in names}
    return [found[number, name] for number, name in sites]


def _sites_of(config: Any) -> dict[str, Sites]:
    return {"sites": config.sites, "target_sites": getattr(config, "target_sites", ())}
