"""Noticing a loss that is not finite without waiting for the device at every step.

On the CPU looking costs nothing, so the step itself raises. On other devices the first bad step is
noted in a tensor there, the optimiser skips that step and all after it (so the weights stay those
before it), and `check`, called now and then, raises. An optimiser that cannot skip by itself gets
gradients of zero instead, so that its weights stay finite but may drift until then.

Where bad batches are to be skipped, the optimiser skips just them, and only a long row of them is
an error. If asked, a loss far above its running mean is as bad as one that is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ON_NAN = ("stop", "skip_batch", "rewind")

# So many bad batches one after the other are no accident of the data.
MOST_SKIPPED_IN_A_ROW = 20


# The mean of losses that a spike is measured by: over about so many steps, and from so many on.
_STEPS_IN_MEAN = 100
_STEPS_BEFORE_SPIKES = 50


class NonFiniteLossError(RuntimeError):
    """The loss, or its gradient, became NaN or infinite; the weights are those before that step.

    Also where it spiked, if that was to be looked for.
    """

    def __init__(
        self, step: int, inputs_are_finite: bool, spike_factor: float | None = None
    ) -> None:
        self.step = step
        if spike_factor is not None:
            super().__init__(
                f"The loss at training step {step} is more than {spike_factor} times its running "
                "mean. Leave the batch out (on_nan='skip_batch'), raise loss_spike_factor, or "
                "lower lr. The weights before that step are kept."
            )
            return
        if inputs_are_finite:
            reason = (
                "The activations of that batch are finite, so training has diverged: lower lr, "
                "warm it up for longer, or turn autocast off. In float16 Adam's moments underflow; "
                "train in float32 or bfloat16."
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


class NonFiniteWatch:
    """Remembers the first step whose loss or gradient norm was not finite.

    Args:
        device: where the loss is computed.
        skips: whether bad batches are left out instead of ending the training.
        spike_factor: a loss above this many times its running mean is bad, too; None for none.
    """

    def __init__(
        self, device: torch.device, skips: bool = False, spike_factor: float | None = None
    ) -> None:
        self._looks_at_once = device.type == "cpu"
        self._spike_factor = spike_factor
        self._skips = skips
        self._device = device
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        device = self._device
        self._first_bad_step = torch.full((), -1, dtype=torch.long, device=device)
        self._inputs_were_finite = torch.ones((), dtype=torch.bool, device=device)
        self._n_in_a_row = torch.zeros((), dtype=torch.long, device=device)
        self._n_skipped = torch.zeros((), dtype=torch.long, device=device)
        self._mean = torch.zeros((), dtype=torch.float64, device=device)
        self._n_in_mean = torch.zeros((), dtype=torch.long, device=device)
        self._was_spike = torch.zeros((), dtype=torch.bool, device=device)

    def state_dict(self) -> dict[str, Any]:
        """How many bad batches were left out, how many of them just now, and the mean loss."""
        return {
            "n_skipped": int(self._n_skipped),
            "n_in_a_row": int(self._n_in_a_row),
            "mean": self._mean.item(),
            "n_in_mean": int(self._n_in_mean),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a `state_dict`."""
        self.forget()
        self._n_skipped.fill_(state["n_skipped"])
        self._n_in_a_row.fill_(state["n_in_a_row"])
        self._mean.fill_(state.get("mean", 0.0))
        self._n_in_mean.fill_(state.get("n_in_mean", 0))

    @property
    def n_skipped(self) -> int:
        """How many bad batches were left out (waits for the device)."""
        return int(self._n_skipped)

    @torch.no_grad()
    def observe(
        self, loss: Tensor, gradient_norm: Tensor | None, sae_in: Tensor, step: int
    ) -> Tensor:
        """Look at one step, before its update.

        Returns:
            Bool scalar tensor: whether the update must be skipped.

        Raises:
            NonFiniteLossError: on the CPU, when this step is bad (the last of too many, where bad
                batches are skipped).
        """
        finite = torch.isfinite(loss.detach())
        if gradient_norm is not None:
            finite = finite & torch.isfinite(gradient_norm)
        spikes = torch.zeros_like(finite)
        if self._spike_factor is not None:
            spikes = finite & self._spikes(loss.detach().double(), finite)
            finite = finite & ~spikes
        if self._looks_at_once and bool(finite):
            self._n_in_a_row.zero_()
            return ~finite
        inputs_are_finite = torch.isfinite(sae_in).all()
        if self._looks_at_once and not self._skips:
            factor = self._spike_factor if bool(spikes) else None
            raise NonFiniteLossError(step, bool(inputs_are_finite), factor)
        if self._skips:
            self._n_skipped += ~finite
            self._n_in_a_row = torch.where(finite, 0, self._n_in_a_row + 1)
            is_over = self._n_in_a_row > MOST_SKIPPED_IN_A_ROW
            is_first = is_over & (self._first_bad_step < 0)
        else:
            is_first = ~finite & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first, step, self._first_bad_step)
        self._inputs_were_finite &= ~is_first | inputs_are_finite
        self._was_spike |= is_first & spikes
        if self._looks_at_once:
            self._raise_if_bad()
        return ~finite | (self._first_bad_step >= 0)

    def check(self) -> None:
        """Wait for the device and raise `NonFiniteLossError` if a step was bad."""
        if not self._looks_at_once:
            self._raise_if_bad()

    def _raise_if_bad(self) -> None:
        step = int(self._first_bad_step)
        if step >= 0:
            factor = self._spike_factor if bool(self._was_spike) else None
            raise NonFiniteLossError(step, bool(self._inputs_were_finite), factor)

    def _spikes(self, loss: Tensor, finite: Tensor) -> Tensor:
        """Whether the loss is far above the mean of those before; it enters it if it is not."""
        knows_enough = self._n_in_mean >= _STEPS_BEFORE_SPIKES
        spikes = knows_enough & (loss > (self._spike_factor or 1.0) * self._mean)
        counts = finite & ~spikes
        self._n_in_mean += counts
        # The mean of all at first, of the latest ones later.
        share = 1.0 / self._n_in_mean.clamp(min=1, max=_STEPS_IN_MEAN)
        self._mean = torch.where(counts, self._mean + share * (loss - self._mean), self._mean)
        return spikes
