"""Two activations of each token, from one forward pass: what a transcoder reads and what it writes.

A row is both side by side, [d_in + d_out]. Mixing, epochs, state and filters are those of every
`ActivationsStore`, for rows of that width. The transcoder's training class takes them apart.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.activations.activation_source import with_flat_heads
from sae_lens.activations.model_adapters import activations_at_hooks, model_device, require_hook
from sae_lens.activations.rows import require_inputs_first, require_one_for_each_token
from sae_lens.activations.store import ActivationsStore
from sae_lens.activations.store_settings import sae_fact
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
    def _settings_of_run(cls, model: Any, cfg: Any, override_dataset: Any) -> dict[str, Any]:
        settings = super()._settings_of_run(model, cfg, override_dataset)
        return {**settings, "hook_name_out": cfg.sae.hook_name_out, "d_out": cfg.sae.d_out}

    @classmethod
    def _settings_of_sae(
        cls, model: Any, sae: Any, context_size: int | None, dataset: Any
    ) -> dict[str, Any]:
        settings = super()._settings_of_sae(model, sae, context_size, dataset)
        hook_name_out = sae_fact(sae.cfg, "hook_name_out")
        if not hook_name_out:
            raise ValueError(
                "The SAE's config names no output hook, hook_name_out: rows for a transcoder need "
                "one. For any other SAE use ActivationsStore.from_sae."
            )
        return {**settings, "hook_name_out": hook_name_out, "d_out": sae.cfg.d_out}

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
        inputs, outputs = [self.hook_name], [self.hook_name_out]
        require_inputs_first(self.model, tokens, inputs, outputs, self.model_kwargs)

    def _require_model_fits(self) -> None:
        super()._require_model_fits()
        require_hook(self.model, self.hook_name_out)

    def _run_model(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context *w"]:
        device_type = model_device(self.model).type
        names = (self.hook_name, self.hook_name_out)
        last_layer = max(self.hook_layer, self.hook_layer_out)
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.autocast_lm):
            found = activations_at_hooks(
                self.model,
                tokens,
                names,
                last_layer + 1,
                self.model_kwargs,
                fused=self.fused_forward,
            )
        require_one_for_each_token(tokens, {name: found[name] for name in names})
        parts = [
            with_flat_heads(found[name], name, None, width, field)
            for name, width, field in zip(names, self.widths, ("d_in", "d_out"), strict=True)
        ]
        return torch.cat(parts, dim=-1)
