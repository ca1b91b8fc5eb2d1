"""Where an SAE's weights are and in which dtype, in step with its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sae_lens.constants import DTYPE_MAP

if TYPE_CHECKING:
    from typing_extensions import Self


class Placement(nn.Module):
    """The part of an SAE that knows its dtype and device, and keeps the config's in step."""

    cfg: Any
    _initial_dtype: torch.dtype
    _initial_device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights as they are now."""
        W_dec = self._parameters.get("W_dec")
        return self._initial_dtype if W_dec is None else W_dec.dtype

    @dtype.setter
    def dtype(self, dtype: torch.dtype) -> None:
        self.to(dtype=dtype)

    @property
    def device(self) -> torch.device:
        """The device of the weights as they are now."""
        W_dec = self._parameters.get("W_dec")
        return self._initial_device if W_dec is None else W_dec.device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self.to(device=device)

    def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Move or cast in place, as `nn.Module.to`; `cfg.device` and `cfg.dtype` follow.

        What is given by position and by keyword is taken from the keyword.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if "tensor" in kwargs:
            args = (kwargs.pop("tensor"), *args)
        parse_to = torch._C._nn._parse_to  # type: ignore[attr-defined]
        names = ("device", "dtype", "non_blocking", "memory_format")
        by_position = dict(zip(names, parse_to(*args), strict=True))
        settings = {name: value for name, value in by_position.items() if value is not None}
        settings |= kwargs
        device, dtype, *_ = parse_to(**settings)
        super().to(**settings)
        if device is not None:
            self.cfg.device = str(device)
        if dtype is not None:
            self.cfg.dtype = str(dtype)
        return self

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        # .half(), .cuda() and moves of a parent module all pass through here
        module = super()._apply(fn, *args, **kwargs)
        cfg = self.__dict__.get("cfg")
        if cfg is not None and self._parameters.get("W_dec") is not None:
            if DTYPE_MAP.get(cfg.dtype) != self.dtype:
                cfg.dtype = str(self.dtype)
            if torch.device(cfg.device).type != self.device.type:
                cfg.device = str(self.device)
        return module
