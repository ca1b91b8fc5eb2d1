"""Training passes under autocast are close to those in float32, for every architecture and form."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sae_lens.registry import get_sae_training_class
from sae_lens.saes.training_step import TrainStepInput
from tests.helpers import D_IN, D_SAE, activations
from tests.training.test_features_for_all_architectures import CONFIGS


def step(config: Any, form: Any, autocast: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """The output of a training pass with dead features, and the gradients."""
    torch.manual_seed(0)
    sae = get_sae_training_class(str(config.architecture)).sae_class(copy.deepcopy(config))
    sae.sparse_kernels = form
    with torch.no_grad():
        for parameter in sae.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.01 * torch.randn(parameter.shape))
    batch = activations(24, sum(getattr(sae, "activation_widths", (D_IN,))), seed=1)
    coefficients = dict.fromkeys(sae.get_coefficients(), 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = sae.training_forward_pass(
            TrainStepInput(batch, coefficients, torch.arange(D_SAE) % 3 == 0)
        )
    output.loss.backward()
    return output, {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_autocast_changes_little(architecture: str, form: Any) -> None:
    want, want_gradients = step(CONFIGS[architecture], form, autocast=False)
    got, gradients = step(CONFIGS[architecture], form, autocast=True)
    assert got.loss.dtype == torch.float32
    assert got.loss.item() == pytest.approx(want.loss.item(), rel=1e-2)
    assert gradients.keys() == want_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, name
        norm = want_gradients[name].norm()
        # a selection may turn out otherwise where two features are nearly alike
        assert (gradient - want_gradients[name]).norm() <= 0.25 * norm + 1e-6, name
