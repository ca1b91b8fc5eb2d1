"""Noticing a loss that is not finite without waiting for the device at every step.

On the CPU looking costs nothing, so the step itself raises. On other devices the first bad step is
noted in a tensor there, the optimiser skips that step and all after it (so the weights stay those
before it), and `check`, called now and then, raises.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """The loss, or its gradient, became NaN or infinite; the weights are those before that step."""

    def __init__(self, step: int, inputs_are_finite: bool) -> None:
        if inputs_are_finite:
            reason = (
                "The activations of that batch are finite, so training has diverged: lower lr, "
                "warm it up for longer, or turn autocast off."
            )
        else:
            reason = (
                "The activations of that batch are not finite either: check the model's dtype "
                "(float16 overflows where bfloat16 does not), or set normalize_activations."
            )
        super().__init__(
            f"The loss or its gradient is NaN or infinite at training step {step}. {reason} The "
            "weights before that step are kept."
        )
        self.step = step


class NonFiniteWatch:
    """Remembers the first step whose loss or gradient norm was not finite."""

    def __init__(self, device: torch.device) -> None:
        self._looks_at_once = device.type == "cpu"
        self._first_bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self._inputs_were_finite = torch.ones((), dtype=torch.bool, device=device)

    @torch.no_grad()
    def observe(
        self, loss: Tensor, gradient_norm: Tensor | None, sae_in: Tensor, step: int
    ) -> Tensor:
        """Look at one step, before its update.

        Returns:
            Bool scalar tensor: whether the update must be skipped.

        Raises:
            NonFiniteLossError: on the CPU, when this step is bad.
        """
        finite = torch.isfinite(loss.detach())
        if gradient_norm is not None:
            finite = finite & torch.isfinite(gradient_norm)
        if self._looks_at_once:
            if not finite:
                raise NonFiniteLossError(step, bool(torch.isfinite(sae_in).all()))
            return ~finite
        is_first = ~finite & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first, step, self._first_bad_step)
        self._inputs_were_finite &= ~is_first | torch.isfinite(sae_in).all()
        return self._first_bad_step >= 0

    def check(self) -> None:
        """Wait for the device and raise `NonFiniteLossError` if a step was bad."""
        if self._looks_at_once:
            return
        step = int(self._first_bad_step)
        if step >= 0:
            raise NonFiniteLossError(step, bool(self._inputs_were_finite))
