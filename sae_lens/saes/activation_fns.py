"""Activation functions, and the pseudo-gradients that train a threshold.

`JumpReLU` and `Step` follow Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction
Fidelity with JumpReLU Sparse Autoencoders" (arXiv:2407.14435), equations 11 and 12.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATION_FN_NAMES = ("relu", "tanh-relu", "topk")


class TanhReLU(nn.Module):
    """`tanh(relu(x))`: non-negative activations below 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        return torch.tanh(torch.relu(x))


# Activations whose value and gradient are 0 for x <= 0.
ZERO_BELOW_ZERO = (nn.ReLU, TanhReLU)


class TopK(nn.Module):
    """Keep the `k` largest entries along the last dimension, apply `postact_fn`, zero the rest.

    The output is dense and of the input's shape. With ReLU fewer than `k` entries can be non-zero.
    """

    def __init__(self, k: int, postact_fn: nn.Module = nn.ReLU()):  # noqa: B008  (stateless)
        super().__init__()
        self.k = k
        self.postact_fn = postact_fn

    def forward(self, x: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        """Select along the last dimension."""
        top = torch.topk(x, k=self.k, dim=-1, sorted=False)
        return torch.zeros_like(x).scatter_(-1, top.indices, self.postact_fn(top.values))


def get_activation_fn(activation_fn: str, **kwargs: Any) -> nn.Module:
    """The activation module of a name: "relu", "tanh-relu", or "topk" (which needs `k`).

    Raises:
        ValueError: for another name, or for "topk" without `k`.
    """
    if activation_fn == "relu":
        return nn.ReLU()
    if activation_fn == "tanh-relu":
        return TanhReLU()
    if activation_fn == "topk":
        if kwargs.get("k") is None:
            raise ValueError(
                "activation_fn_kwargs.k must be provided for the topk activation function, "
                'for example activation_fn_kwargs={"k": 100}.'
            )
        postact_fn = kwargs.get("postact_fn")
        return TopK(kwargs["k"]) if postact_fn is None else TopK(kwargs["k"], postact_fn)
    raise ValueError(
        f"Unknown activation function: {activation_fn!r}. Allowed are "
        f"{', '.join(ACTIVATION_FN_NAMES)}."
    )


def rectangle(x: Tensor) -> Tensor:
    """The kernel of the pseudo-gradients: 1 strictly inside (-0.5, 0.5), else 0, in x's dtype."""
    return ((x > -0.5) & (x < 0.5)).to(x)


def _sum_to_threshold(gradient: Tensor, threshold: Tensor) -> Tensor:
    leading = tuple(range(gradient.ndim - threshold.ndim))
    return gradient.sum(leading) if leading else gradient


class Step(torch.autograd.Function):
    """`1[x > threshold]`, with a pseudo-gradient for the threshold and none for x."""

    @staticmethod
    def forward(x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """Heaviside step in x's dtype."""
        return (x > threshold).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        """Keep what `backward` needs."""
        x, threshold, bandwidth = inputs
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        """`-(1/bandwidth) rect((x - threshold)/bandwidth)`, summed over the leading dimensions."""
        x, threshold = ctx.saved_tensors
        window = rectangle((x - threshold) / ctx.bandwidth)
        gradient = -(1.0 / ctx.bandwidth) * window * grad_output
        return None, _sum_to_threshold(gradient, threshold), None


class JumpReLU(torch.autograd.Function):
    """`x * 1[x > threshold]`, with a pseudo-gradient for the threshold."""

    @staticmethod
    def forward(x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """Keep what lies above the threshold."""
        return x * (x > threshold).to(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        """Keep what `backward` needs."""
        x, threshold, bandwidth = inputs
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """The exact gradient for x; `-(threshold/bandwidth) rect(...)` for the threshold."""
        x, threshold = ctx.saved_tensors
        window = rectangle((x - threshold) / ctx.bandwidth)
        x_gradient = (x > threshold).to(x) * grad_output
        gradient = -(threshold / ctx.bandwidth) * window * grad_output
        return x_gradient, _sum_to_threshold(gradient, threshold), None


class StepThroughInput(Step):
    """`Step` whose window term also reaches x, with the opposite sign."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """As `Step`, and its negative elementwise for x."""
        x, threshold = ctx.saved_tensors
        window = rectangle((x - threshold) / ctx.bandwidth)
        gradient = (1.0 / ctx.bandwidth) * window * grad_output
        return gradient, _sum_to_threshold(-gradient, threshold), None


class JumpReLUThroughInput(JumpReLU):
    """`JumpReLU` whose window term also reaches x, with the opposite sign."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """As `JumpReLU`, with the threshold's term subtracted elementwise for x."""
        x, threshold = ctx.saved_tensors
        window = rectangle((x - threshold) / ctx.bandwidth)
        window_term = (threshold / ctx.bandwidth) * window * grad_output
        x_gradient = (x > threshold).to(x) * grad_output + window_term
        return x_gradient, _sum_to_threshold(-window_term, threshold), None
