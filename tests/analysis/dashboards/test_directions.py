"""Logits and neighbours, against the products written out."""

from __future__ import annotations

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_lens.analysis.dashboards.directions import logit_effects, neighbors
from sae_lens.saes import SAE
from tests.analysis.dashboards.conftest import make_sae


def strongest(effects: torch.Tensor, count: int) -> list[int]:
    return effects.topk(count).indices.tolist()


def test_logit_effects_through_the_unembedding(sae: SAE, model: HookedTransformer) -> None:
    with torch.no_grad():
        model.ln_final.w.copy_(torch.rand(12) + 0.5)
    effects = (sae.W_dec * model.ln_final.w) @ model.W_U
    raised, lowered = logit_effects(sae, model, torch.tensor([5, 2]), 4)
    for i, feature in enumerate([5, 2]):
        assert [e.token for e in raised[i]] == strongest(effects[feature], 4)
        assert [e.token for e in lowered[i]] == strongest(-effects[feature], 4)
        assert raised[i][0].value == pytest.approx(effects[feature].max().item(), rel=1e-3)
        assert lowered[i][0].value == pytest.approx(effects[feature].min().item(), rel=1e-3)


def test_logit_effects_of_heads_and_neurons(model: HookedTransformer) -> None:
    scale = model.ln_final.w
    heads = make_sae(hook_name="blocks.1.attn.hook_z")
    effects = (heads.W_dec @ model.W_O[1].flatten(0, 1) * scale) @ model.W_U
    assert [e.token for e in logit_effects(heads, model, torch.tensor([3]), 5)[0][0]] == strongest(
        effects[3], 5
    )
    head = make_sae(d_in=6, hook_name="blocks.1.attn.hook_z", hook_head_index=1)
    effects = (head.W_dec @ model.W_O[1, 1] * scale) @ model.W_U
    assert [e.token for e in logit_effects(head, model, torch.tensor([3]), 5)[0][0]] == strongest(
        effects[3], 5
    )
    neurons = make_sae(d_in=48, hook_name="blocks.0.mlp.hook_post")
    effects = (neurons.W_dec @ model.W_out[0] * scale) @ model.W_U
    raised, _ = logit_effects(neurons, model, torch.tensor([3]), 5)
    assert [e.token for e in raised[0]] == strongest(effects[3], 5)


def test_no_logit_effects_where_there_is_no_linear_path(model: HookedTransformer) -> None:
    queries = make_sae(hook_name="blocks.1.attn.hook_q")
    assert logit_effects(queries, model, torch.tensor([0, 1]), 5) == ([[], []], [[], []])


def test_neighbors(sae: SAE) -> None:
    unit = torch.nn.functional.normalize(sae.W_dec, dim=1)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(-2)
    for record, feature in zip(neighbors(sae, torch.tensor([7, 0]), 3), (7, 0), strict=True):
        assert [near.feature for near in record] == strongest(cosines[feature], 3)
        assert feature not in [near.feature for near in record]
