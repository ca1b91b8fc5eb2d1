"""Hugging Face models under TransformerLens's hook names, beside TransformerLens itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as tl_loading
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_gpt2_weights,
    convert_llama_weights,
    convert_mistral_weights,
    convert_neox_weights,
    convert_qwen2_weights,
    convert_qwen3_weights,
)
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from sae_lens.activations.hf_adapter import HookedCausalLM, hooked_causal_lm
from sae_lens.activations.model_adapters import activations_at, activations_at_hooks
from sae_lens.activations.proxy_lm import HookedProxyLM
from sae_lens.load_model import load_model
from tests.activations.fakes import make_store
from tests.activations.test_model_loading import make_tokenizer

N_LAYERS = 3
D_MODEL = 16
TOKENS = torch.randint(0, 32, (3, 9), generator=torch.Generator().manual_seed(0))
SHARED: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": D_MODEL, "intermediate_size": 24, "num_attention_heads": 4,
    "num_hidden_layers": N_LAYERS, "max_position_embeddings": 16, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GROUPED = {**SHARED, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
HF_CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(
        vocab_size=32, n_embd=D_MODEL, n_head=4, n_layer=N_LAYERS, n_positions=16,
        n_ctx=16, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    ),
    "gpt_neox": GPTNeoXConfig(**SHARED, rotary_pct=0.5),
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=4),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**GEMMA, attn_logit_softcapping=5.0),
    "gemma3": Gemma3TextConfig(**GEMMA, sliding_window_pattern=2),
}  # fmt: skip
CONVERTERS: dict[str, Any] = {
    "gpt2": convert_gpt2_weights,
    "gpt_neox": convert_neox_weights,
    "llama": convert_llama_weights,
    "mistral": convert_mistral_weights,
    "qwen2": convert_qwen2_weights,
    "qwen3": convert_qwen3_weights,
    "gemma2": convert_gemma_weights,
    "gemma3": convert_gemma_weights,
}
IN_LAYER = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out",
    "attn.hook_z", "mlp.hook_pre", "mlp.hook_post",
)  # fmt: skip


def make_hf_model(family: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(HF_CONFIGS[family]).eval()
    with torch.no_grad():  # norms and biases that matter
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tl_config(family: str, folder: Path) -> dict[str, Any]:
    """TransformerLens's config for the family. It has those of Gemma by model name only."""
    config = HF_CONFIGS[family]
    if not family.startswith("gemma"):
        config.architectures = [type(AutoModelForCausalLM.from_config(config)).__name__]
        config.save_pretrained(folder)
        return tl_loading.convert_hf_model_config(str(folder))
    name = {"gemma2": "google/gemma-2-2b", "gemma3": "google/gemma-3-1b-pt"}[family]
    if name not in tl_loading.OFFICIAL_MODEL_NAMES:
        pytest.skip(f"this TransformerLens does not know {name}")
    sizes = {
        "d_model": config.hidden_size, "d_head": config.head_dim,
        "n_heads": config.num_attention_heads, "d_mlp": config.intermediate_size,
        "n_layers": N_LAYERS, "d_vocab": 32, "window_size": config.sliding_window,
        "n_key_value_heads": config.num_key_value_heads,
        "attn_types": [kind.replace("sliding_attention", "local").replace("full_attention",
                       "global") for kind in config.layer_types],
    }  # fmt: skip
    if family == "gemma2":
        sizes["attn_scores_soft_cap"] = config.attn_logit_softcapping
    return {**tl_loading.convert_hf_model_config(name), **sizes}


def make_tl_model(family: str, hf_model: Any, folder: Path) -> HookedTransformer:
    values = {**tl_config(family, folder), "n_ctx": 16, "device": "cpu", "tokenizer_name": None}
    if values.get("rotary_dim") is None and values.get("positional_embedding_type") == "rotary":
        values["rotary_dim"] = values["d_head"]
    model = HookedTransformer(HookedTransformerConfig.from_dict(values)).eval()
    state = CONVERTERS[family](hf_model, model.cfg)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False, refactor_factored_attn_matrices=False,
    )  # fmt: skip
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", HF_CONFIGS)
def test_activations_equal_those_of_transformer_lens(family: str, tmp_path: Path) -> None:
    hf_model = make_hf_model(family)
    reference = make_tl_model(family, hf_model, tmp_path)
    model = hooked_causal_lm(hf_model, None)
    assert isinstance(model, HookedCausalLM)
    logits, cache = reference.run_with_cache(TOKENS)
    mine, hf_cache = model.run_with_cache(TOKENS)
    torch.testing.assert_close(mine, logits, atol=2e-5, rtol=1e-4)
    names = ["hook_embed"]
    names += [f"blocks.{i}.{name}" for i in range(N_LAYERS) for name in IN_LAYER]
    if family == "gpt_neox":
        names = [name for name in names if not name.endswith("hook_resid_mid")]
    assert set(names) <= set(model.hook_dict)
    for name in names:
        torch.testing.assert_close(hf_cache[name], cache[name], atol=1e-5, rtol=1e-4, msg=name)
        alone = activations_at(model, TOKENS, name, N_LAYERS, {})
        assert torch.equal(alone, hf_cache[name])


@torch.no_grad()
@pytest.mark.parametrize("family", HF_CONFIGS)
@pytest.mark.parametrize("name", IN_LAYER)
def test_what_a_hook_returns_takes_the_place_of_the_activation(
    family: str, name: str, tmp_path: Path
) -> None:
    if (family, name) == ("gpt_neox", "hook_resid_mid"):
        pytest.skip("attention and MLP stand side by side")
    hf_model = make_hf_model(family)
    reference = make_tl_model(family, hf_model, tmp_path)
    model = hooked_causal_lm(hf_model, None)
    hooks: list[Any] = [(f"blocks.1.{name}", lambda acts, hook: acts * 0.5 + 0.1)]
    want = reference.run_with_hooks(TOKENS, fwd_hooks=hooks)
    torch.testing.assert_close(
        model.run_with_hooks(TOKENS, fwd_hooks=hooks), want, atol=1e-4, rtol=1e-3
    )
    assert not torch.allclose(want, reference(TOKENS), atol=1e-3)
    torch.testing.assert_close(model(TOKENS), reference(TOKENS), atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_nothing_runs_behind_the_hook(family: str) -> None:
    model = hooked_causal_lm(make_hf_model(family), None)
    path = "transformer.h" if family == "gpt2" else "model.layers"
    layers: Any = model.model.get_submodule(path)
    ran: list[int] = []
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index), prepend=True)
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(10 + index))
    activations_at(model, TOKENS, "blocks.1.hook_resid_pre", 2, {})
    assert ran == [0, 10, 1]  # layer 1 is asked, but does not start
    ran.clear()
    hooks = ["blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"]
    assert sorted(activations_at_hooks(model, TOKENS, hooks, 2, {})) == sorted(hooks)
    assert ran == [0, 10, 1]
    # and the model still works as a whole
    assert model(TOKENS).shape == (3, 9, 32)


def test_hooks_have_the_names_of_modules_too() -> None:
    model = hooked_causal_lm(make_hf_model("gpt2"), None)
    names = [name for name, _ in model.model.named_modules() if name]
    assert list(model.hook_dict)[: len(names)] == names
    assert model.mod_dict.keys() == model.hook_dict.keys()
    assert all(point.name == name for name, point in model.hook_dict.items())
    cache = model.run_with_cache(TOKENS)[1]
    assert torch.equal(cache["transformer.h.1"], cache["blocks.1.hook_resid_post"])


@torch.no_grad()
def test_copies_and_set_up_again() -> None:
    model = hooked_causal_lm(make_hf_model("llama"), None)
    want = model(TOKENS)
    other = copy.deepcopy(model)
    for name in ("hook_resid_mid", "hook_resid_pre", "hook_attn_out"):
        other.hook_dict[f"blocks.0.{name}"].add_hook(lambda acts, hook: acts * 2)
    assert torch.equal(model(TOKENS), want)
    assert not torch.allclose(other(TOKENS), want)
    counts = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.model.modules()]
    model.setup()
    again = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.model.modules()]
    assert again == counts
    assert torch.equal(model(TOKENS), want)


def test_other_models_keep_the_names_of_their_modules() -> None:
    config = BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)
    bloom = AutoModelForCausalLM.from_config(config)
    assert type(hooked_causal_lm(bloom, None)) is HookedProxyLM
    with pytest.raises(ValueError, match=r"'bloom' has no TransformerLens names.*HookedProxyLM"):
        HookedCausalLM(bloom, None)
    sequential = GPTNeoXConfig(**SHARED, use_parallel_residual=False)
    neox = AutoModelForCausalLM.from_config(sequential)
    assert type(hooked_causal_lm(neox, None)) is HookedProxyLM


@pytest.mark.parametrize(
    ("family", "changes", "attention"),
    [
        ("gpt2", {}, "sdpa"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "eager"),
        ("gpt2", {"scale_attn_weights": False}, "eager"),
        ("gemma2", {}, "eager"),
        ("gemma2", {"attn_logit_softcapping": None}, "sdpa"),
        ("gemma3", {}, "sdpa"),
        ("llama", {}, "sdpa"),
    ],
)
def test_fused_attention_is_used_where_it_computes_all(
    family: str, changes: dict[str, Any], attention: str
) -> None:
    config = copy.deepcopy(HF_CONFIGS[family])
    for name, value in changes.items():
        setattr(config, name, value)
    model: Any = AutoModelForCausalLM.from_config(config)
    default = model.config._attn_implementation
    # transformers 5 has no fused attention for Gemma 2.
    assert default == "sdpa" or (family == "gemma2" and default == "eager")
    hooked_causal_lm(model, None)
    assert model.config._attn_implementation == (attention if default == "sdpa" else "eager")


def test_a_store_reads_through_it(tmp_path: Path) -> None:
    hf_model = make_hf_model("gpt2")
    hf_model.save_pretrained(tmp_path)
    make_tokenizer(adds_bos=False).save_pretrained(tmp_path)
    model = load_model("AutoModelForCausalLM", str(tmp_path), device="cpu")
    reference = make_tl_model("gpt2", hf_model, tmp_path / "tl")
    rows = [{"tokens": row} for row in torch.randint(0, 32, (40, 5)).tolist()]
    hook = "blocks.1.attn.hook_z"
    stores = [
        make_store(one, rows, hook_name=hook, hook_layer=1, d_in=D_MODEL)
        for one in (model, reference)
    ]
    for store in stores:
        store.check_model()
    for _ in range(4):
        got, want = (store.next_batch() for store in stores)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no hook 'blocks.1.hook_z'"):
        make_store(model, rows, hook_name="blocks.1.hook_z").check_model()
