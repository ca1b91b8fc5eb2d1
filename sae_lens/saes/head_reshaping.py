"""Activations with a head axis: flattened on the way in, split again on the way out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sae_lens.hook_names import is_hook_z


class HeadReshaping(nn.Module):
    """The part of an SAE that takes `[..., n_heads, d_head]` where its hook has heads."""

    cfg: Any
    hook_z_reshaping_mode: bool
    d_head: int | None

    @staticmethod
    def _reshapes_hook_z(cfg: Any) -> bool:
        chosen = getattr(cfg, "reshape_activations", None)
        return chosen == "hook_z" if chosen is not None else is_hook_z(cfg.hook_name or "")

    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        """Take `[..., n_heads, d_head]` and give it back. `ValueError` on a hook without heads."""
        if not is_hook_z(self.cfg.hook_name or ""):
            raise ValueError(
                "hook_z reshaping is for hooks whose name ends in '_z', not "
                f"{self.cfg.hook_name!r}."
            )
        self.hook_z_reshaping_mode = True

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Take and give `[..., d_in]`."""
        self.hook_z_reshaping_mode = False
        self.d_head = None

    def reshape_fn_in(self, x: Tensor) -> Tensor:
        """Flatten heads when reshaping is on. Inputs that are flat already stay as they are."""
        if not self.hook_z_reshaping_mode:
            return x
        if x.shape[-1] == self.cfg.d_in:
            self.d_head = None
            return x
        self.d_head = x.shape[-1]
        return x.flatten(-2)

    def reshape_fn_out(self, x: Tensor, d_head: int | None) -> Tensor:
        """Split the last dimension into heads of width `d_head`, when reshaping is on."""
        if not self.hook_z_reshaping_mode or d_head is None:
            return x
        return x.unflatten(-1, (-1, d_head))
