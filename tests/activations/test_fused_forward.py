"""The faster way through a HookedTransformer beside TransformerLens's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.components import TransformerBlock

from sae_lens.activations import fused_forward
from sae_lens.activations.model_adapters import activations_at, activations_at_hooks
from tests.helpers import tiny_model

N_LAYERS = 3
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8, "rotary_adjacent_pairs": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"act_fn": "gelu_new", "normalization_type": "LN"},
    "folded norm": {"normalization_type": "LNPre"},
    "no norm": {"normalization_type": None},
    "rotary, gated, grouped": {
        **ROTARY, "normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu",
        "n_key_value_heads": 2,
    },
    "folded rms": {**ROTARY, "normalization_type": "RMSPre", "final_rms": True},
    "adjacent pairs": {**ROTARY, "rotary_dim": 4, "rotary_adjacent_pairs": True},
    "parallel": {**ROTARY, "rotary_dim": 4, "parallel_attn_mlp": True, "act_fn": "gelu"},
    "attention only": {"attn_only": True},
    "window": {"use_local_attn": True, "attn_types": ["local", "global", "local"],
               "window_size": 3},
    "norms around, on q and k": {
        **ROTARY, "normalization_type": "RMS", "use_normalization_before_and_after": True,
        "use_qk_norm": True, "n_key_value_heads": 1, "gated_mlp": True,
        "act_fn": "gelu_pytorch_tanh",
    },
    "other scale": {"attn_scale": 2.0, "scale_attn_by_inverse_layer_idx": True},
    "layer norm in the mlp": {"act_fn": "solu_ln"},
}  # fmt: skip
TOKENS = torch.randint(0, 32, (3, 9), generator=torch.Generator().manual_seed(0))
# What blocks can be in TransformerLens 3 only.
LATER_SETTINGS: list[dict[str, Any]] = [
    {"clip_qkv": 0.1},
    {"use_attention_sinks": True},
    {"use_logn_attn": True, "train_seq_length": 3},
    {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS"},
]
IS_EARLIER = "clip_qkv" not in HookedTransformerConfig.__dataclass_fields__
LAST = f"blocks.{N_LAYERS - 1}.hook_resid_post"


def make_model(dtype: torch.dtype = torch.float32, **fields: Any) -> HookedTransformer:
    values: dict[str, Any] = {
        "n_layers": N_LAYERS, "d_model": 32, "d_head": 8, "n_heads": 4, "n_ctx": 16,
        "d_vocab": 32, "act_fn": "relu", "normalization_type": "LN", "seed": 0, "device": "cpu",
        "dtype": dtype,
    }  # fmt: skip
    model = HookedTransformer(HookedTransformerConfig(**{**values, **fields})).eval()
    with torch.no_grad():  # biases and weights of norms that matter
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if "W_" not in name else 0.1))
    return model


def reference(model: HookedTransformer, hook: str) -> torch.Tensor:
    return model.run_with_cache(TOKENS)[1][hook]


def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The blocks that were run by the fused operations, as they are run."""
    calls: list[Any] = []
    run_block = fused_forward.run_block

    def counting(block: Any, residual: torch.Tensor) -> torch.Tensor:
        calls.append(block)
        return run_block(block, residual)

    monkeypatch.setattr(fused_forward, "run_block", counting)
    return calls


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_activations_equal_those_of_transformer_lens(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(**CONFIGS[name])
    calls = fused_calls(monkeypatch)
    for hook in ("blocks.1.hook_resid_pre", "blocks.2.attn.hook_pattern", LAST):
        got = activations_at(model, TOKENS, hook, N_LAYERS, {})
        torch.testing.assert_close(got, reference(model, hook), atol=1e-5, rtol=1e-5)
    # The first hook ends the pass at the start of block 1; block 2 must form the second's pattern.
    assert calls == [model.blocks[i] for i in (0, 1, 0, 1, 0, 1, 2)]
    cache = model.run_with_cache(TOKENS)[1]
    served = [f"blocks.1.{inner}" for inner in fused_forward._SERVED]
    inside = [hook for hook in served if hook in cache]
    config = CONFIGS[name]
    n_norms = 0 if config.get("normalization_type", "LN") is None else 2
    n_norms *= 1 + config.get("use_normalization_before_and_after", False)
    want = 7 + n_norms // 2 if config.get("attn_only") else 11 + n_norms - (name == "parallel")
    assert len(inside) == want
    together = activations_at_hooks(model, TOKENS, [*inside, LAST], N_LAYERS, {})
    assert len(calls) == 10
    for hook, got in together.items():
        torch.testing.assert_close(got, cache[hook], atol=1e-5, rtol=1e-5)
        assert torch.equal(got, activations_at(model, TOKENS, hook, N_LAYERS, {}))


@torch.no_grad()
def test_the_model_stops_at_the_last_of_several_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    calls = fused_calls(monkeypatch)
    hooks = ["blocks.1.hook_resid_post", "blocks.0.ln2.hook_scale", "blocks.0.hook_resid_pre"]
    found = activations_at_hooks(model, TOKENS, hooks, N_LAYERS, {})
    assert list(calls) == [model.blocks[1]]
    assert sorted(found) == sorted(hooks)
    for hook in hooks:
        torch.testing.assert_close(found[hook], reference(model, hook), atol=1e-5, rtol=1e-5)
    assert not any(point._forward_hooks for point in model.hook_dict.values())


@torch.no_grad()
@pytest.mark.parametrize("hook", ["hook_embed", "ln_final.hook_normalized"])
def test_hooks_outside_the_blocks(hook: str) -> None:
    model = make_model()
    got = activations_at(model, TOKENS, hook, N_LAYERS, {})
    torch.testing.assert_close(got, reference(model, hook), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = make_model(dtype, act_fn="gelu_new")
    got = activations_at(model, TOKENS, LAST, N_LAYERS, {})
    assert got.dtype == dtype
    half = dtype == torch.bfloat16
    tolerance = {"atol": 0.1, "rtol": 0.05} if half else {"atol": 1e-12, "rtol": 1e-12}
    torch.testing.assert_close(got, reference(model, LAST), **tolerance)


@torch.no_grad()
@pytest.mark.parametrize("hook", ["blocks.0.attn.hook_pattern", "blocks.0.ln1.hook_scale"])
def test_a_hook_inside_a_block_acts(hook: str) -> None:
    model = make_model()
    before = activations_at(model, TOKENS, LAST, N_LAYERS, {})
    with model.hooks(fwd_hooks=[(hook, lambda acts, hook: acts * 0.5)]):
        got = activations_at(model, TOKENS, LAST, N_LAYERS, {})
        want = reference(model, LAST)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, before, atol=1e-3)


@torch.no_grad()
def test_replaced_parts_are_run_as_they_are() -> None:
    model = make_model()

    class Louder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 3

    model.blocks[0].hook_mlp_out = Louder()  # as an attached SAE is
    got = activations_at(model, TOKENS, LAST, N_LAYERS, {})
    torch.testing.assert_close(got, reference(model, LAST), atol=1e-5, rtol=1e-5)
    model.blocks[1].mlp.forward = lambda x: x * 0  # type: ignore[method-assign]
    got = activations_at(model, TOKENS, LAST, N_LAYERS, {})
    torch.testing.assert_close(got, reference(model, LAST), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        {"attn_scores_soft_cap": 5.0},
        {"use_attn_result": True},
        {"use_split_qkv_input": True},
        {"attention_dir": "bidirectional"},
        {"positional_embedding_type": "alibi"},
        *(
            pytest.param(later, marks=pytest.mark.skipif(IS_EARLIER, reason="not in this version"))
            for later in LATER_SETTINGS
        ),
    ],
)
def test_unknown_kinds_of_blocks_are_run_as_they_are(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(**change)
    calls = fused_calls(monkeypatch)
    assert torch.equal(activations_at(model, TOKENS, LAST, N_LAYERS, {}), reference(model, LAST))
    assert calls == []


def test_whose_forward_pass_it_may_stand_for() -> None:
    model = tiny_model()
    assert not fused_forward.can_run_fused(model)  # a gradient would be recorded
    with torch.no_grad():
        assert fused_forward.can_run_fused(model)
        handle = model.register_forward_hook(lambda *_: None)
        assert not fused_forward.can_run_fused(model)
        handle.remove()

        class Other(HookedTransformer):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return super().forward(*args, **kwargs)

        assert not fused_forward.can_run_fused(Other(model.cfg))
        assert not fused_forward.can_run_fused(torch.nn.Linear(1, 1))


@torch.no_grad()
def test_the_choice_is_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    calls = fused_calls(monkeypatch)
    got = activations_at(model, TOKENS, LAST, N_LAYERS, {}, fused=False)
    assert torch.equal(got, reference(model, LAST))
    assert activations_at(model, TOKENS, LAST, N_LAYERS, {"attention_mask": None}) is not None
    assert calls == []


@torch.no_grad()
def test_weights_may_change_between_calls() -> None:
    model = make_model()
    activations_at(model, TOKENS, LAST, N_LAYERS, {})
    for block in model.blocks:
        assert isinstance(block, TransformerBlock)
        block.attn.W_Q.mul_(3.0)
    got = activations_at(model, TOKENS, LAST, N_LAYERS, {})
    torch.testing.assert_close(got, reference(model, LAST), atol=1e-5, rtol=1e-5)
