"""The Triton kernels against the dense references; in Triton's interpreter without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed here")

ON_GPU = torch.cuda.is_available()

# The interpreter is chosen when Triton is first imported, so the comparisons get their own process.
PRODUCTS = """
import sys
import torch
from sae_lens.kernels import entry_products, sparse_decode, weight_gradient
from sae_lens.kernels.active_set import ActiveSet

torch.manual_seed(0)
device = sys.argv[1]
for module in (entry_products, sparse_decode, weight_gradient):
    module.uses_triton = lambda _: True

SHAPES = ((5, 9, 33, 0.3), (1, 3, 130, 1.0), (4, 7, 1, 0.0), (1, 1, 1, 1.0), (2, 9, 257, 0.2),
          (18, 3, 64, 0.3))
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for batch, d_sae, d_in, density in SHAPES:
        mask = torch.rand(batch, d_sae, device=device) < density
        active = ActiveSet(*mask.nonzero(as_tuple=True), mask.shape)
        make = dict(dtype=dtype, device=device)
        values, W = torch.randn(len(active), **make), torch.randn(d_sae, d_in, **make)
        G = torch.randn(batch, d_in, **make)
        # sums are taken in float32 at least, whatever the dtype
        wide = dtype if dtype == torch.float64 else torch.float32
        exact = [t.to(wide) for t in (values, W, G)]

        def close(got, wanted):
            assert got.dtype == dtype
            torch.testing.assert_close(got, wanted.to(dtype))

        for source, other in ((W, exact[1]), (W.T.contiguous().T, exact[1])):
            close(sparse_decode.sparse_decode(values, active, source),
                  sparse_decode.reference(exact[0], active, other))
            close(entry_products.entry_products(G, source, active),
                  entry_products.reference(exact[2], other, active))
        for accumulate in (False, True):
            for out in (torch.ones_like(W), torch.ones_like(W.T).contiguous().T):
                wanted = weight_gradient.reference(
                    exact[0], active, exact[2], out.to(wide), accumulate
                )
                filled = weight_gradient.weight_gradient(values, active, G, out, accumulate)
                assert filled.data_ptr() == out.data_ptr()
                close(filled, wanted)
print("agree")
"""

STEPS = """
import copy, sys
import torch
from sae_lens.kernels import entry_products, sparse_decode, weight_gradient
from sae_lens.saes import TrainingSAE
from tests.helpers import make_training_sae, randomize
from tests.saes.test_sparse_training import DEAD_FEATURES, V6_CASES, assert_forms_agree

calls = []
for module in (entry_products, sparse_decode, weight_gradient):
    module.uses_triton = lambda _, name=module.__name__: calls.append(name) or True
for architecture in ("gated", "jumprelu"):
    assert_forms_agree(make_training_sae(architecture), None)
of_each = {config.architecture: config for config in V6_CASES}
for architecture in ("topk", "matryoshka_batchtopk"):
    sae = TrainingSAE(copy.deepcopy(of_each[architecture]))
    randomize(sae)
    assert_forms_agree(sae, DEAD_FEATURES["some dead"])
assert len(set(calls)) == 3
print("agree")
"""


def run_comparison(comparison: str, device: str, interpret: bool) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1" if interpret else "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", comparison, device], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "agree", done.stderr[-2000:]


@pytest.mark.skipif(ON_GPU, reason="the kernels run on the GPU itself here")
@pytest.mark.parametrize("comparison", [PRODUCTS, STEPS], ids=["products", "steps"])
def test_kernels_agree_in_the_interpreter(comparison: str) -> None:
    run_comparison(comparison, "cpu", interpret=True)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_kernels_agree_on_the_gpu() -> None:
    run_comparison(PRODUCTS, "cuda", interpret=False)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_forms_agree_on_the_gpu(architecture: str) -> None:
    from tests.helpers import make_training_sae
    from tests.saes.test_sparse_training import assert_forms_agree

    sae = make_training_sae(architecture, device="cuda")
    assert_forms_agree(sae, None)
