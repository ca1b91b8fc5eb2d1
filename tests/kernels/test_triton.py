"""The Triton kernels against the dense references; in Triton's interpreter without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed here")

ON_GPU = torch.cuda.is_available()

# The interpreter is chosen when Triton is first imported, so the comparison gets its own process.
COMPARISON = """
import sys
import torch
from sae_lens.kernels import entry_products, sparse_decode, weight_gradient
from sae_lens.kernels.active_set import ActiveSet
from sae_lens.kernels.triton_entry_products import entry_products as triton_entry_products
from sae_lens.kernels.triton_gather_sum import gather_sum

torch.manual_seed(0)
device = sys.argv[1]
for dtype in (torch.float32, torch.float64):
    for batch, d_sae, d_in, density in ((5, 19, 33, 0.3), (1, 3, 130, 1.0), (4, 7, 1, 0.0)):
        mask = torch.rand(batch, d_sae, device=device) < density
        active = ActiveSet(*mask.nonzero(as_tuple=True), mask.shape)
        make = dict(dtype=dtype, device=device)
        values, W = torch.randn(len(active), **make), torch.randn(d_sae, d_in, **make)
        G = torch.randn(batch, d_in, **make)

        out = torch.full((batch, d_in), torch.nan, **make)
        decoded = gather_sum(active.row_offsets, active.cols, values, W, out)
        torch.testing.assert_close(decoded, sparse_decode.reference(values, active, W))

        products = triton_entry_products(G, W, active.rows, active.cols)
        torch.testing.assert_close(products, entry_products.reference(G, W, active))

        for accumulate in (False, True):
            for out in (torch.ones_like(W), torch.ones_like(W.T).contiguous().T):
                wanted = weight_gradient.reference(values, active, G, out.clone(), accumulate)
                by_column = values[active.column_order]
                gather_sum(active.col_offsets, active.rows_by_column, by_column, G, out, accumulate)
                torch.testing.assert_close(out, wanted)
print("agree")
"""


def run_comparison(device: str, interpret: bool) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPARISON, device], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "agree", done.stderr[-2000:]


@pytest.mark.skipif(ON_GPU, reason="the kernels run on the GPU itself here")
def test_kernels_agree_in_the_interpreter() -> None:
    run_comparison("cpu", interpret=True)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_kernels_agree_on_the_gpu() -> None:
    run_comparison("cuda", interpret=False)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_forms_agree_on_the_gpu(architecture: str) -> None:
    from tests.helpers import make_training_sae
    from tests.saes.test_sparse_training import assert_forms_agree

    sae = make_training_sae(architecture, device="cuda")
    assert_forms_agree(sae, None)
