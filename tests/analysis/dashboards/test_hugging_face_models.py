"""Features of a Hugging Face model, beside the same model in TransformerLens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens.activations.hf_adapter import hooked_causal_lm
from sae_lens.analysis.dashboards import DashboardSettings, collect_feature_data
from sae_lens.analysis.dashboards.directions import logit_effects
from tests.activations.test_hf_adapter import (
    D_MODEL,
    HF_CONFIGS,
    TOKENS,
    make_hf_model,
    make_tl_model,
)
from tests.analysis.dashboards.conftest import make_sae

WIDTHS = {
    "hook_resid_pre": D_MODEL,
    "hook_mlp_out": D_MODEL,
    "attn.hook_z": None,
    "mlp.hook_post": None,
}


@torch.no_grad()
@pytest.mark.parametrize("family", HF_CONFIGS)
def test_logits_are_those_of_transformer_lens(family: str, tmp_path: Path) -> None:
    hf_model = make_hf_model(family)
    reference: Any = make_tl_model(family, hf_model, tmp_path)
    model = hooked_causal_lm(hf_model, None)
    features = torch.arange(24)
    for name, width in WIDTHS.items():
        block = reference.blocks[1]
        width = width or (block.attn.W_O.shape[:2].numel() if "hook_z" in name else
                          block.mlp.W_out.shape[0])  # fmt: skip
        sae = make_sae(d_in=width, hook_name=f"blocks.1.{name}")
        expected = logit_effects(sae, reference, features, 5)
        found = logit_effects(sae, model, features, 5)
        is_normalised = family.startswith("gemma") and name in ("attn.hook_z", "mlp.hook_post")
        assert (expected[0][0] == []) == is_normalised, name
        for mine, theirs in zip(found, expected, strict=True):
            assert [[e.token for e in row] for row in mine] == [
                [e.token for e in row] for row in theirs
            ], name
            assert [e.value for row in mine for e in row] == pytest.approx(
                [e.value for row in theirs for e in row], rel=2e-3
            )


def test_a_single_head(tmp_path: Path) -> None:
    hf_model = make_hf_model("gpt2")
    reference = make_tl_model("gpt2", hf_model, tmp_path)
    sae = make_sae(d_in=4, hook_name="blocks.2.attn.hook_z", hook_head_index=2)
    features = torch.arange(5)
    model = hooked_causal_lm(hf_model, None)
    assert logit_effects(sae, model, features, 1) == logit_effects(sae, reference, features, 1)


@pytest.mark.parametrize(
    "name", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.mlp.hook_post"]
)
def test_passages_are_those_of_transformer_lens(name: str, tmp_path: Path) -> None:
    hf_model = make_hf_model("llama")
    reference = make_tl_model("llama", hf_model, tmp_path)
    sae = make_sae(d_in=24 if "mlp" in name else D_MODEL, hook_name=name, context_size=9)
    settings = DashboardSettings(n_tokens=27, context_size=9, top_passages=3)
    mine, theirs = (
        collect_feature_data(sae, model, TOKENS, settings=settings, show_progress=False)
        for model in (hooked_causal_lm(hf_model, None), reference)
    )
    assert mine.l0 == theirs.l0 > 0
    for a, b in zip(mine.features, theirs.features, strict=True):
        assert a.density == b.density
        assert a.max_activation == pytest.approx(b.max_activation, rel=2e-3)
        assert [(p.row, p.position) for p in a.top] == [(p.row, p.position) for p in b.top]


def test_a_hook_that_the_model_does_not_have() -> None:
    sae = make_sae(d_in=D_MODEL, hook_name="blocks.1.attn.hook_pattern")
    with pytest.raises(ValueError, match="hook_pattern"):
        collect_feature_data(
            sae, hooked_causal_lm(make_hf_model("gpt2"), None), TOKENS, show_progress=False
        )
