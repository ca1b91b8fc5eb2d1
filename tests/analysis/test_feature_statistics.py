"""Tables of feature statistics against values worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from sae_lens.analysis.feature_statistics import (
    get_all_stats_dfs,
    get_feature_property_df,
    get_stats_df,
    get_W_U_W_dec_stats_df,
    plot_feature_properties,
    plot_stats,
)


def standard_sae():
    return SimpleNamespace(
        W_enc=torch.tensor([[3.0, 0.0], [4.0, 2.0]]),
        W_dec=torch.tensor([[1.0, 1.0], [0.0, 5.0]]),
        b_enc=torch.tensor([0.1, -0.2]),
        b_dec=torch.tensor([2.0, -1.0]),
    )


def test_feature_properties_by_hand():
    table = get_feature_property_df(standard_sae(), torch.tensor([-2.0, -9.5]))
    assert list(table.columns) == [
        "log_feature_sparsity",
        "d_e_projection",
        "b_enc",
        "b_dec_projection",
        "feature",
        "dead_neuron",
    ]
    assert table["d_e_projection"].tolist() == pytest.approx([7 / 5, 5.0])
    assert table["b_enc"].tolist() == pytest.approx([0.1, -0.2])
    assert table["b_dec_projection"].tolist() == pytest.approx([1.0, -5.0])
    assert table["feature"].tolist() == [0, 1]
    assert table["dead_neuron"].tolist() == [False, True]


def test_feature_properties_of_a_gated_sae_and_of_wrong_densities():
    sae = standard_sae()
    sae.b_gate = sae.b_enc
    del sae.b_enc
    table = get_feature_property_df(sae, torch.zeros(2))
    assert table["b_enc"].tolist() == pytest.approx([0.1, -0.2])
    with pytest.raises(ValueError, match=r"\(3,\).*2 features"):
        get_feature_property_df(sae, torch.zeros(3))


def test_moments_by_hand():
    # 0, 0, 0, 4: mean 1, variance 3, third moment 6, fourth 21
    table = get_stats_df(torch.tensor([[0.0, 0.0, 0.0, 4.0], [1.0, 1.0, 1.0, 1.0]]))
    first = table.iloc[0]
    assert first["mean"] == pytest.approx(1.0)
    assert first["std"] == pytest.approx(math.sqrt(3))
    assert first["skewness"] == pytest.approx(6 / 3**1.5)
    assert first["kurtosis"] == pytest.approx(21 / 9)
    assert math.isnan(table.iloc[1]["skewness"])


def test_logit_effects_plain_and_as_cosine():
    model = SimpleNamespace(W_U=torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]]))
    w_dec = torch.tensor([[1.0, 0.0]])
    table, product = get_W_U_W_dec_stats_df(w_dec, model)
    assert product.tolist() == [[3.0, 0.0, 1.0]]
    assert table["mean"].item() == pytest.approx(4 / 3)
    _, cosine = get_W_U_W_dec_stats_df(w_dec, model, cosine_sim=True)
    assert cosine.tolist()[0] == pytest.approx([0.6, 0.0, 1.0])


def test_half_precision_decoders_are_accepted():
    model = SimpleNamespace(W_U=torch.eye(2))
    table, product = get_W_U_W_dec_stats_df(torch.eye(2).bfloat16(), model)
    assert product.dtype == torch.float32
    assert len(table) == 2


def test_tables_of_several_saes_are_joined():
    model = SimpleNamespace(W_U=torch.eye(2))
    names = ["blocks.3.hook_resid_pre", "blocks.11.hook_resid_post"]
    saes = {name: standard_sae() for name in names}
    table = get_all_stats_dfs(saes, {name: torch.tensor([-1.0, -2.0]) for name in names}, model)
    assert table["layer"].tolist() == [3, 3, 12, 12]
    assert table["log_feature_sparsity"].tolist() == [-1.0, -2.0, -1.0, -2.0]
    assert {"feature", "mean", "std", "skewness", "kurtosis"} <= set(table.columns)
    with pytest.raises(ValueError, match=r"blocks\.3"):
        get_all_stats_dfs(saes, {names[1]: torch.zeros(2)}, model)


def points_of(figure):
    traces = [trace for trace in figure.data if trace.type in ("scatter", "scattergl")]
    return {
        (round(float(x), 5), round(float(y), 5))
        for trace in traces
        for x, y in zip(trace.x, trace.y, strict=True)
    }


def test_tables_are_drawn():
    pytest.importorskip("plotly")
    table = get_feature_property_df(standard_sae(), torch.tensor([-2.0, -9.5]))
    assert points_of(plot_feature_properties(table)) == {(-2.0, 0.1), (-9.5, -0.2)}
    stats = get_stats_df(torch.tensor([[0.0, 0.0, 0.0, 4.0], [0.0, 0.0, 4.0, 4.0]]))
    assert points_of(plot_stats(stats)) == {(1.1547, 2.33333), (0.0, 1.0)}
    stats["layer"] = [0, 1]
    assert len(points_of(plot_stats(stats))) == 2
