"""Adam whose weights and moments are bfloat16, rounded stochastically.

A bfloat16 has eight bits of precision, so that an update smaller than about 1/256 of a weight is
lost when the sum is rounded to the nearest number, step after step. Rounded up or down at random,
with probabilities in proportion to the distances, it is kept on average (Gupta et al. 2015, "Deep
Learning with Limited Numerical Precision", arXiv:1502.02551). The same holds for the moments, of
which a step changes the second by a thousandth. Weights, gradients and moments then take 8 bytes
per parameter instead of 16, and the arithmetic is that of float32, piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from sae_lens.saes.dead_features import may_look_at
from sae_lens.training.bias_corrections import bias_corrections

# A MiB of float32: the few of these that an update needs stay in the processor's cache.
_ELEMENTS_PER_PIECE = 1 << 18


class LowPrecisionAdam(Optimizer):
    """See the module's text. Parameters of other dtypes are updated as by plain Adam.

    The random numbers follow from `seed`, the step and the place in the parameter, so a run that
    goes on from a checkpoint rounds as it would have done. Away from the CPU, where a step is
    skipped without the host's knowing, they follow from the number of calls.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the mean of gradients and of their squares.
        eps: added to the root of the second moment.
        seed: of the rounding.

    Raises:
        ValueError: for a negative lr or eps, or betas outside [0, 1).
    """

    # As torch's fused optimisers, it can divide gradients and skip a step by itself.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr={lr}, betas={betas}, eps={eps}: lr and eps must not be negative, betas must "
                "lie in [0, 1)."
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "seed": seed, "fused": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                index += 1
                if parameter.grad is not None:
                    self._update(parameter, group, index)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any], index: int) -> None:
        divisor: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        skip = None if found_inf is None else found_inf != 0
        if skip is not None and may_look_at(parameter):
            if bool(skip):
                return
            skip = None
        state = self.state[parameter]
        if not state:
            # The count is a tensor, as in torch's optimisers, so that checkpoints hold it alike.
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            if not may_look_at(parameter):
                state["calls"] = 0
        step, n_calls = _counted(state, skip, may_look_at(parameter))
        beta1, beta2 = group["betas"]
        of_mean, of_square = bias_corrections(step, group["betas"])
        step_size = group["lr"] / of_mean
        is_tensor = isinstance(of_square, Tensor)
        root_of_correction = of_square.sqrt() if is_tensor else math.sqrt(of_square)

        flat = [
            _pieces(t, parameter)
            for t in (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        ]
        # an odd factor far from powers of two keeps the seeds of neighbouring steps apart
        seed = (group["seed"] * 1_000_003 + n_calls) * 65_537 + index
        rounds = parameter.dtype == torch.bfloat16
        generator = _generator(parameter, seed) if rounds else None
        keeps = skip is not None  # then what there was must not be overwritten yet
        for weight, gradient, mean, square in zip(*flat, strict=True):
            g = gradient.float() if divisor is None else gradient.float() / divisor
            m = mean.to(torch.float32, copy=keeps).lerp_(g, 1 - beta1)
            s = square.to(torch.float32, copy=keeps).mul_(beta2)
            s.addcmul_(g, g, value=1 - beta2)
            root = s.sqrt().div_(root_of_correction).add_(group["eps"])
            w = weight.to(torch.float32, copy=keeps)
            if isinstance(step_size, Tensor):
                w.addcdiv_(m, root.div_(step_size), value=-1.0)
            else:
                w.addcdiv_(m, root, value=-step_size)
            moved = [(weight, w), (mean, m), (square, s)]
            if skip is not None:
                moved = [(old, torch.where(skip, old.float(), new)) for old, new in moved]
            if generator is not None:
                noise = _sixteen_random_bits(w.numel(), generator)
                for target, value in moved:  # of what is bfloat16 already, nothing is rounded
                    round_stochastically(value, noise, out=target)
            else:
                for target, value in moved:
                    target.copy_(value)


def _counted(state: dict[str, Any], skip: Tensor | None, on_host: bool) -> tuple[int | Tensor, int]:
    """Count an update: how many there have been, and how many were asked for, skipped or not."""
    if on_host:
        state["step"] += 1
        n = int(state["step"])
        return n, n
    if "calls" not in state:  # as in checkpoints of a run on the CPU
        state["calls"] = int(state["step"])
    state["calls"] += 1
    state["step"] += 1 if skip is None else ~skip
    return state["step"], state["calls"]


def _generator(parameter: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(parameter.device).manual_seed(seed)


def round_stochastically(
    values: Float[Tensor, " n"], noise: Tensor, out: Float[Tensor, " n"]
) -> None:
    """Round float32 to bfloat16, up with the probability that is the share of the way up.

    Args:
        values: contiguous float32; overwritten.
        noise: int32 from 0 to 65535, evenly distributed.
        out: bfloat16, contiguous. Infinities and NaN stay what they are.
    """
    bits = values.view(torch.int32)
    # A bfloat16 is the upper half of a float32: a carry out of the lower half rounds up.
    # An infinite one would be broken by a carry; away from the CPU, asking would mean to wait.
    if values.device.type == "cpu" and bool(values.sum().isfinite()):
        bits.add_(noise).bitwise_and_(-65536)
        out.copy_(values)
        return
    rounded = ((bits + noise) & -65536).view(torch.float32)
    out.copy_(torch.where(values.isfinite(), rounded, values))


def _sixteen_random_bits(n: int, generator: torch.Generator) -> Tensor:
    """`n` int32 from 0 to 65535, four from each draw."""
    draws = torch.empty((n + 3) // 4, dtype=torch.int64, device=generator.device)
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:n].to(torch.int32).bitwise_and_(65535)


def _pieces(tensor: Tensor | None, like: Tensor) -> list[Tensor]:
    """One-dimensional views of parts of a tensor, in the order of `like`'s memory."""
    assert tensor is not None
    order = sorted(range(like.ndim), key=lambda axis: -like.stride(axis))
    ordered = tensor.permute(order)
    if ordered.is_contiguous():
        return list(ordered.view(-1).split(_ELEMENTS_PER_PIECE))
    if tensor is like:
        raise ValueError(
            f"LowPrecisionAdam needs parameters that fill their memory, not one of strides "
            f"{tuple(like.stride())} for the shape {tuple(like.shape)}."
        )
    return list(ordered.reshape(-1).split(_ELEMENTS_PER_PIECE))
