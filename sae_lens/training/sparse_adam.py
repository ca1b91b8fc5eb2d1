"""Adam that leaves a weight alone in steps where its gradient is zero.

With sparse features most rows of encoder and decoder have no gradient in a step. Plain Adam moves
them all the same, by momentum. Here moments decay everywhere, but only entries with a gradient are
updated; a parameter whose whole gradient is zero is skipped. Cf. the lazy Adam of sparse embeddings
(`torch.optim.SparseAdam`), which does not decay untouched moments.

On the CPU the host looks whether there is anything to do. Elsewhere it does not wait to learn that:
the device counts the updates and leaves everything as it is in a step without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sae_lens.saes.dead_features import may_look_at
from sae_lens.training.bias_corrections import bias_corrections


class SparseAdam(Optimizer):
    """See the module's text.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the mean of gradients and of their squares.
        eps: added to the root of the second moment.
    """

    # As torch's fused optimisers, it can divide gradients and skip a step by itself.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr={lr}, betas={betas}, eps={eps}: lr and eps must not be negative, betas must "
                "lie in [0, 1)."
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a non-zero gradient entry."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        divisor: Tensor | None = getattr(self, "grad_scale", None)
        if divisor is not None:
            gradient = gradient / divisor.to(gradient.dtype)
        touched = gradient != 0
        moves = touched.any()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None:
            moves = moves & (found_inf == 0)
        on_host = may_look_at(parameter)
        if on_host and not bool(moves):
            return
        state = self.state[parameter]
        if not state:
            state["step"] = 0 if on_host else torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        if on_host:
            state["step"] += 1
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        else:
            state["step"] += moves
            mean.copy_(torch.where(moves, mean.lerp(gradient, 1 - beta1), mean))
            decayed = (square * beta2).addcmul_(gradient, gradient, value=1 - beta2)
            square.copy_(torch.where(moves, decayed, square))
            touched = touched & moves
        of_mean, of_square = bias_corrections(state["step"], group["betas"])
        root = (square / of_square).sqrt_().add_(group["eps"])
        update = (mean / of_mean).div_(root).mul_(touched)
        parameter.add_(update, alpha=-group["lr"])
