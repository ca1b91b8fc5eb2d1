"""`torch.compile` of the training pass gives the results of the plain one."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch

from sae_lens.saes import TrainingSAE
from tests.helpers import D_SAE, activations, make_training_sae
from tests.saes.test_sparse_training import V6_CASES

NO_COMPILER = shutil.which("g++") is None and shutil.which("clang++") is None

# Where a graph is split, the compiler itself looks at this attribute, and torch warns it.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

# A dead feature makes the pass look at values, which splits the graph.
DEAD = torch.arange(D_SAE) % 7 == 0


def assert_compiles(sae: TrainingSAE, backend: str, mode: str) -> None:
    compiled_sae = copy.deepcopy(sae)
    sae.sparse_kernels = "dense"
    compiled_sae.sparse_kernels = mode  # type: ignore[assignment]
    torch.compiler.reset()
    compiled = torch.compile(compiled_sae.training_forward_pass, backend=backend)
    for seed in range(2):
        x = activations(8, seed=seed)
        wanted, got = sae.training_forward_pass(x, 0.3, DEAD), compiled(x, 0.3, DEAD)
        torch.testing.assert_close(got.loss, wanted.loss, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got.feature_acts, wanted.feature_acts, atol=1e-5, rtol=1e-4)
        wanted.loss.backward()
        got.loss.backward()
    for name, parameter in compiled_sae.named_parameters():
        expected = sae.get_parameter(name).grad
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_traced_training_pass(architecture: str) -> None:
    # a forced sparse form gives way as well: compiled passes are dense
    assert_compiles(make_training_sae(architecture), "aot_eager", "sparse")


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_compiled_training_pass(architecture: str) -> None:
    assert_compiles(make_training_sae(architecture), "inductor", "auto")


@pytest.mark.slow
@pytest.mark.parametrize("config", V6_CASES, ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}")
def test_traced_training_pass_of_the_v6_form(config: Any) -> None:
    assert_compiles(TrainingSAE(copy.deepcopy(config)), "aot_eager", "auto")
