"""`torch.compile` of the training pass gives the results of the plain one."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch

from sae_lens.registry import SAE_TRAINING_CLASSES, get_sae_training_class
from sae_lens.saes import TrainingSAE
from tests.helpers import D_IN, D_SAE, activations, make_training_sae
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
    width = sum(getattr(sae, "activation_widths", (D_IN,)))
    for seed in range(2):
        x = activations(8, width, seed=seed)
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


def config_of(architecture: str) -> Any:
    """A small config of the 6.x form."""
    for config in V6_CASES:
        if config.architecture == architecture:
            return copy.deepcopy(config)
    fields: dict[str, Any] = {"k": 4} if "topk" in architecture else {}
    if "transcoder" in architecture:
        fields["d_out"] = 12
    if architecture == "matching_pursuit":
        fields["max_iterations"] = 4
    config_class = get_sae_training_class(architecture).config_class
    return config_class(d_in=D_IN, d_sae=D_SAE, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(SAE_TRAINING_CLASSES))
def test_traced_training_pass_of_every_architecture(architecture: str) -> None:
    assert_compiles(TrainingSAE(config_of(architecture)), "aot_eager", "auto")


@pytest.mark.slow
@pytest.mark.parametrize("config", V6_CASES, ids=lambda c: f"{c.architecture}-{V6_CASES.index(c)}")
def test_traced_training_pass_with_every_setting(config: Any) -> None:
    assert_compiles(TrainingSAE(copy.deepcopy(config)), "aot_eager", "auto")


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize("architecture", sorted(SAE_TRAINING_CLASSES))
def test_compiled_training_pass_of_every_architecture(architecture: str) -> None:
    assert_compiles(TrainingSAE(config_of(architecture)), "inductor", "auto")
