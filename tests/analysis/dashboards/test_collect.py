"""One pass over the tokens gives what looking at all activations at once gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens.analysis.dashboards import (
    DashboardSettings,
    FeatureDashboardData,
    collect_feature_data,
)
from sae_lens.errors import InvalidArgumentError
from sae_lens.saes import SAE
from tests.analysis.dashboards.conftest import BOS, HOOK, make_sae

ALL_TOKENS = 30 * 16


def collect(
    sae: SAE | Path, model: HookedTransformer, tokens: Tensor, **settings: int
) -> FeatureDashboardData:
    settings = {"n_tokens": ALL_TOKENS, "top_passages": 5, **settings}
    return collect_feature_data(
        sae,
        model,
        tokens,
        settings=DashboardSettings(**settings),  # type: ignore[arg-type]
        ignore_token_ids=[BOS],
        show_progress=False,
    )


@pytest.fixture(scope="module")
def acts(sae: SAE, model: HookedTransformer, tokens: Tensor) -> Tensor:
    """[row, pos, d_sae], zero on the beginning-of-sequence tokens."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        return sae.encode(cache[HOOK]) * (tokens != BOS)[..., None]


@pytest.fixture(scope="module")
def data(sae: SAE, model: HookedTransformer, tokens: Tensor) -> FeatureDashboardData:
    return collect(sae, model, tokens, batch_size=7)


def test_counts(data: FeatureDashboardData, acts: Tensor, tokens: Tensor) -> None:
    n_tokens = int((tokens != BOS).sum())
    assert data.n_tokens == n_tokens
    assert data.l0 == pytest.approx(float((acts > 0).sum() / n_tokens))
    for i, feature in enumerate(data.features):
        firing = acts[..., i][acts[..., i] > 0]
        assert feature.density == pytest.approx(len(firing) / n_tokens)
        assert feature.max_activation == pytest.approx(float(firing.max()), rel=1e-3)
        assert feature.mean_activation == pytest.approx(float(firing.mean()), rel=1e-3)
        assert sum(feature.histogram.counts) == len(firing)
    assert sum(feature.l0_share for feature in data.features) == pytest.approx(1.0)


def test_top_passages_are_the_strongest_of_different_contexts(
    data: FeatureDashboardData, acts: Tensor, tokens: Tensor
) -> None:
    for i, feature in enumerate(data.features):
        highest, position = acts[..., i].max(dim=1)
        rows = highest.argsort(descending=True)[:5]
        assert [p.row for p in feature.top] == rows.tolist()
        for passage in feature.top:
            assert passage.activation == pytest.approx(float(highest[passage.row]), rel=1e-3)
            assert passage.position == int(position[passage.row])
            start = passage.position - passage.peak
            here = slice(start, start + len(passage.tokens))
            assert passage.tokens == tokens[passage.row, here].tolist()
            assert passage.activations == pytest.approx(
                acts[passage.row, here, i].tolist(), rel=1e-3
            )


@pytest.mark.parametrize("batch_size", [1, 30])
def test_the_batch_size_changes_nothing_but_the_sample(
    sae: SAE, model: HookedTransformer, tokens: Tensor, data: FeatureDashboardData, batch_size: int
) -> None:
    other = collect(sae, model, tokens, batch_size=batch_size)
    for mine, theirs in zip(other.features, data.features, strict=True):
        assert mine.density == theirs.density
        assert mine.max_activation == pytest.approx(theirs.max_activation, rel=1e-3)
        assert [p.row for p in mine.top] == [p.row for p in theirs.top]
        assert mine.histogram.counts == theirs.histogram.counts


def test_sampled_passages_fall_in_groups_and_all_fire(data: FeatureDashboardData) -> None:
    for feature in data.features:
        groups = [[p.activation for p in group] for group in feature.quantiles]
        flat = [activation for group in groups for activation in group]
        assert len(groups) == 5
        assert all(flat)
        assert flat == sorted(flat, reverse=True)
        rows = [p.row for group in feature.quantiles for p in group]
        assert len(set(rows)) == len(rows)


def test_passages_are_cut_at_the_ends_of_their_context(
    sae: SAE, model: HookedTransformer, tokens: Tensor
) -> None:
    data = collect(sae, model, tokens, tokens_before=3, tokens_after=2)
    lengths = {
        (p.position, len(p.tokens), p.peak) for feature in data.features for p in feature.top
    }
    for position, length, peak in lengths:
        assert peak == min(position, 3)
        assert length == peak + 1 + min(2, 15 - position)


def test_chosen_features_only(
    sae: SAE, model: HookedTransformer, tokens: Tensor, data: FeatureDashboardData
) -> None:
    few = collect_feature_data(
        sae, model, tokens, features=[20, 3],
        settings=DashboardSettings(n_tokens=ALL_TOKENS, top_passages=5, batch_size=7),
        ignore_token_ids=[BOS], show_progress=False,
    )  # fmt: skip
    assert [feature.index for feature in few.features] == [20, 3]
    assert few.feature(3).top == data.feature(3).top
    assert few.feature(20).raised == data.feature(20).raised
    assert few.l0 == data.l0
    assert few.feature(3).l0_share == data.feature(3).l0_share


def test_as_many_tokens_as_asked_for(sae: SAE, model: HookedTransformer, tokens: Tensor) -> None:
    data = collect(sae, model, tokens, n_tokens=100, batch_size=4)
    assert data.n_tokens == 7 * 15  # seven contexts reach a hundred tokens; BOS is not counted


def test_from_a_folder(
    sae: SAE, model: HookedTransformer, tokens: Tensor, tmp_path: Path, data: FeatureDashboardData
) -> None:
    sae.save_model(tmp_path / "sae")
    assert collect(tmp_path / "sae", model, tokens, batch_size=7) == data


def test_texts_and_token_columns_give_the_same(model: HookedTransformer) -> None:
    from sae_lens.activations.embedded import load_embedded_model, load_embedded_text

    embedded = load_embedded_model()
    sae = make_sae(d_in=128, hook_name="blocks.2.hook_resid_pre", context_size=32)
    text = load_embedded_text("heldout")["text"][0][:3000]
    ids = embedded.to_tokens(text, prepend_bos=False, truncate=False)[0]
    settings = DashboardSettings(n_tokens=320)
    from_text, from_column, from_ids = (
        collect_feature_data(sae, embedded, rows, settings=settings, show_progress=False)
        for rows in ([text], [{"text": text}], [{"input_ids": ids.tolist()}])
    )
    assert from_text == from_column == from_ids
    assert from_text.n_tokens == 10 * 31
    passage = from_text.features[0].top[0]
    assert from_text.text(passage).removeprefix("<|endoftext|>") in text


def test_a_feature_that_does_not_exist(sae: SAE, model: HookedTransformer, tokens: Tensor) -> None:
    with pytest.raises(InvalidArgumentError, match=r"features 0 to 23.*\[24\]"):
        collect_feature_data(sae, model, tokens, features=[1, 24])


def test_a_hook_of_another_width(model: HookedTransformer, tokens: Tensor) -> None:
    with pytest.raises(InvalidArgumentError, match="is 12 wide and the SAE expects d_in=8"):
        collect(make_sae(d_in=8), model, tokens)


def test_nothing_to_look_at(sae: SAE, model: HookedTransformer) -> None:
    with pytest.raises(InvalidArgumentError, match="no token to look at"):
        collect(sae, model, torch.zeros(2, 16, dtype=torch.int64))


def test_rows_without_a_usable_column(sae: SAE, model: HookedTransformer) -> None:
    with pytest.raises(InvalidArgumentError, match=r"columns \['title'\]"):
        collect_feature_data(sae, model, [{"title": "x"}], show_progress=False)


def test_positions_that_the_sae_never_saw_are_not_counted(
    model: HookedTransformer, tokens: Tensor
) -> None:
    sae = make_sae(seqpos_slice=(4, 12))
    data = collect(sae, model, tokens)
    assert data.n_tokens == 30 * 8
    assert all(4 <= p.position < 12 for feature in data.features for p in feature.top)
