"""Two activations of each token, from one forward pass: what a transcoder reads and what it writes.

A row is both side by side, [d_in + d_out]. Mixing, epochs, state and filters are those of every
`ActivationsStore`, for rows of that width. The transcoder's training class takes them apart.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.activations.model_adapters import activations_at_hooks, model_device, require_hook
from sae_lens.activations.rows import require_one_for_each_token
from sae_lens.activations.store import ActivationsStore
from sae_lens.activations.store_settings import settings_from_runner_config
from sae_lens.hook_names import layer_of


class PairedActivationsStore(ActivationsStore):
    """Serves rows of the activations of `hook_name` and, beside them, of `hook_name_out`.

    Args:
        model: as for `ActivationsStore`.
        hook_name_out: the second hook.
        d_out: width of its activations.
        settings: those of `ActivationsStore`; `d_in` is the width at `hook_name`.

    Raises:
        ValueError: for cached activations without a column for one of the hooks.
    """

    def __init__(self, model: Any, *, hook_name_out: str, d_out: int, **settings: Any) -> None:
        self.hook_name_out = hook_name_out
        self.hook_layer_out = layer_of(hook_name_out)
        self.widths = (settings["d_in"], d_out)
        super().__init__(model, **{**settings, "d_in": settings["d_in"] + d_out})

    @classmethod
    def from_config(
        cls, model: Any, cfg: Any, override_dataset: Any = None
    ) -> PairedActivationsStore:
        """A store for a run whose `cfg.sae` is a transcoder's config."""
        settings = settings_from_runner_config(model, cfg, override_dataset)
        store = cls(model, hook_name_out=cfg.sae.hook_name_out, d_out=cfg.sae.d_out, **settings)
        if store.cached_activations_path is None:
            store._require_model_fits()
        store.hold_out(cfg.eval_held_out_rows)
        return store

    def _widths_of_hooks(self) -> dict[str, int]:
        return dict(zip((self.hook_name, self.hook_name_out), self.widths, strict=True))

    @torch.no_grad()
    def check_model(self) -> None:
        """Run one prompt through the model to check hooks, their order and their widths.

        Raises:
            ValueError: when a hook does not exist or has another length, or the second runs before
                the first.
            RuntimeError: when a width is another.
        """
        # of full length, or a hook with another axis in the place of positions might look right
        self._require_model_fits()
        tokens = torch.zeros(
            1, self.context_size, dtype=torch.long, device=model_device(self.model)
        )
        self._run_model(tokens)
        order: list[str] = []
        names = (self.hook_name, self.hook_name_out)
        if hasattr(self.model, "run_with_hooks"):
            hooks = [(name, lambda value, hook: order.append(hook.name)) for name in names]
            self.model.run_with_hooks(tokens, fwd_hooks=hooks, **self.model_kwargs)
        if order and order != list(names):
            raise ValueError(
                f"hook_name_out={self.hook_name_out!r} runs before hook_name={self.hook_name!r}; a "
                "transcoder's input has to come first. Exchange them."
            )

    def _require_model_fits(self) -> None:
        super()._require_model_fits()
        require_hook(self.model, self.hook_name_out)

    def _run_model(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context *w"]:
        device_type = model_device(self.model).type
        names = (self.hook_name, self.hook_name_out)
        last_layer = max(self.hook_layer, self.hook_layer_out)
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.autocast_lm):
            found = activations_at_hooks(
                self.model, tokens, names, last_layer + 1, self.model_kwargs
            )
        require_one_for_each_token(tokens, {name: found[name] for name in names})
        flat = [found[name].flatten(2) for name in names]
        for name, acts, width, field in zip(
            names, flat, self.widths, ("d_in", "d_out"), strict=True
        ):
            if acts.shape[-1] != width:
                raise RuntimeError(
                    f"{field} is {width}, but the activations at {name!r} have a width of "
                    f"{acts.shape[-1]}. Set {field}={acts.shape[-1]}, or choose another hook."
                )
        return torch.cat(flat, dim=-1)
