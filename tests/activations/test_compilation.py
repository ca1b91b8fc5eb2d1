"""Gathering from a compiled model: one compiled function serves all blocks, with equal values."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens.activations import compilation
from sae_lens.activations.compilation import compile_model
from sae_lens.activations.model_adapters import activations_at

NO_COMPILER = shutil.which("g++") is None and shutil.which("clang++") is None
N_LAYERS = 5
HOOKS = {
    "hook_embed": 0,
    "blocks.3.hook_resid_pre": 3,
    "blocks.2.hook_resid_post": 2,
    "blocks.2.attn.hook_z": 2,
    "blocks.4.mlp.hook_post": 4,
    "blocks.1.attn.hook_pattern": 1,
}


def make_model(**fields: Any) -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=N_LAYERS, d_model=16, n_ctx=16, d_head=4, n_heads=4, d_mlp=32, d_vocab=32,
        act_fn="gelu_new", normalization_type="LN", seed=0, device="cpu", **fields,
    )  # fmt: skip
    return HookedTransformer(config).eval()


class Backend:
    """A backend that runs graphs as they are, and counts."""

    def __init__(self) -> None:
        self.n_graphs = 0
        self.n_calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.n_graphs += 1

        def run(*arguments: Tensor) -> Any:
            self.n_calls += 1
            return graph.forward(*arguments)

        return run


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("hook_name", HOOKS)
@torch.no_grad()
def test_blocks_before_the_hook_are_compiled_once(hook_name: str) -> None:
    model, backend = make_model(), Backend()
    compiled = torch.compile(model, backend=backend)
    for seed in range(4):
        tokens = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(seed))
        got = activations_at(compiled, tokens, hook_name, N_LAYERS, {})
        wanted = model.run_with_cache(tokens)[1][hook_name]
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    n_blocks = HOOKS[hook_name]
    assert backend.n_calls == 4 * n_blocks
    assert backend.n_graphs == (n_blocks > 0)
    assert not any(point._forward_hooks for point in model.hook_dict.values())


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="needs a C++ compiler")
@torch.no_grad()
def test_the_real_compiler_gives_equal_activations() -> None:
    model = make_model()
    compiled = compile_model(model, "default")
    tokens = torch.randint(0, 32, (2, 9))
    for hook_name in ("blocks.3.hook_resid_pre", "blocks.4.mlp.hook_post"):
        got = activations_at(compiled, tokens, hook_name, N_LAYERS, {})
        wanted = model.run_with_cache(tokens)[1][hook_name]
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_what_gains_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(
        compilation.torch, "compile", lambda model, mode: modes.append(mode) or model
    )
    with caplog.at_level(logging.WARNING):
        compile_model(make_model(), "default")
        assert not caplog.records
        compile_model(make_model(use_attn_result=True), None)
        compile_model(torch.nn.Linear(2, 2), "max-autotune")
    assert modes == ["default", None, "max-autotune"]
    assert [record.getMessage().split()[2] for record in caplog.records] == [
        "HookedTransformer,",
        "Linear,",
    ]
