"""Token-set enrichment against scores worked out by hand."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import sae_lens.tutorial.tsea as tutorial_tsea
from sae_lens.analysis import token_sets, tsea

VOCAB = {"Ġapple": 0, "Banana": 1, "b1": 2, "ĠBob": 3, "▁axe": 4, "Ġ": 5, "!": 6, "ĠJames": 7}


def test_enrichment_scores_by_hand():
    # feature 0 orders the tokens 0, 2, 1, 3; feature 1 orders them 3, 2, 1, 0
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    sets = torch.tensor([[0, 2], [1, -1]])
    result = tsea.calculate_batch_enrichment_scores(scores, sets)
    # set {0, 2}: +½ +½ −½ −½ reaches 1; then −½ +½ −½ +½ reaches ½
    # set {1}: −⅓ −⅔ +⅓ 0 reaches ⅔ in both orders
    torch.testing.assert_close(result, torch.tensor([[1.0, 0.5], [2 / 3, 2 / 3]]))


def test_enrichment_is_the_same_in_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 40, generator=generator)
    sets = torch.stack([torch.randperm(40, generator=generator)[:5] for _ in range(3)])
    whole = tsea.calculate_batch_enrichment_scores(scores, sets)
    monkeypatch.setattr(tsea, "BLOCK_ELEMENTS", 200)
    torch.testing.assert_close(tsea.calculate_batch_enrichment_scores(scores, sets), whole)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[-1, -1]], "0 of 4 tokens"),
        ([[0, 1, 2, 3]], "4 of 4 tokens"),
        ([[0, 4]], "allowed are 0 to 3"),
        ([[-2, 1]], "allowed are 0 to 3"),
    ],
)
def test_impossible_sets_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        tsea.calculate_batch_enrichment_scores(torch.randn(2, 4), torch.tensor(ids))


def test_enrichment_table_selects_features_and_leaves_the_sets_alone():
    projections = torch.tensor([[9.0, 9.0, 9.0, 9.0], [3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    sets = {"even": {0, 2}, "one": {1}}
    table = tsea.get_enrichment_df(projections, [1, 2], sets)
    assert list(table.index) == ["even", "one"]
    assert list(table.columns) == [1, 2]
    assert table.loc["even", 1] == pytest.approx(1.0)
    assert table.loc["one", 2] == pytest.approx(2 / 3)
    assert sets == {"even": {0, 2}, "one": {1}}
    with pytest.raises(ValueError, match="bad"):
        tsea.get_enrichment_df(projections, [1], {"bad": {99}})


def test_padding_makes_new_lists():
    sets = {"a": {3, 1}, "b": {2}}
    assert tsea.pad_gene_sets(sets) == {"a": [1, 3], "b": [2, -1]}
    assert sets == {"a": {3, 1}, "b": {2}}
    assert tsea.pad_gene_sets({}) == {}


def test_letter_sets():
    sets = tsea.get_letter_gene_sets(VOCAB)
    assert sets["a"] == {0, 4}
    assert sets["b"] == {1, 3}
    assert sets["z"] == set()


def test_regex_sets_match_at_the_start():
    assert tsea.get_gene_set_from_regex(VOCAB, "b") == {2}
    assert tsea.get_gene_set_from_regex(VOCAB, ".*b") == {2, 3}


def test_name_sets_without_the_name_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "babe", None)
    assert tsea.get_baby_name_sets(VOCAB) == {"boy_names": [7], "girl_names": []}
    assert tsea.get_baby_name_sets(VOCAB, k=0)["boy_names"] == []


def test_name_sets_from_the_name_package(monkeypatch):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        [("M", "Bob", 5), ("M", "James", 2), ("M", "Bob", 5), ("F", "Mary", 9)],
        columns=["gender", "name", "births"],
    )
    package = SimpleNamespace(UsNames=lambda: SimpleNamespace(us_names_national=table))
    monkeypatch.setitem(sys.modules, "babe", package)
    assert tsea.get_baby_name_sets(VOCAB, k=1) == {"boy_names": [3], "girl_names": []}


def test_part_of_speech_sets(monkeypatch):
    fake = SimpleNamespace(
        pos_tag=lambda words: [(w, "NN" if w.isalpha() else "CD") for w in words]
    )
    monkeypatch.setitem(sys.modules, "nltk", fake)
    assert tsea.generate_pos_sets(VOCAB) == {"nltk_pos_NN": {0, 1, 3, 4, 7}, "nltk_pos_CD": {2, 6}}
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ImportError, match="pip install nltk"):
        tsea.generate_pos_sets(VOCAB)


class WordModel:
    """Gives every string one id, and records how it was asked."""

    def __init__(self):
        self.ids = {}

    def to_tokens(self, text, prepend_bos=True):
        assert prepend_bos is False
        return torch.tensor([[self.ids.setdefault(text, len(self.ids))]])

    def to_string(self, tokens):
        return f"token {int(tokens)}"


def test_built_in_word_lists_become_ids_of_words_with_a_space():
    model = WordModel()
    sets = tsea.get_test_gene_sets(model)
    decades = {f"19{d}0's" for d in range(1, 10)} | {"2000's", "2010's"}
    named = {
        "colors", "positive_words", "negative_words", "emotions", "boys_names", "girls_names",
        "spanish_words", "french_words", "neuroscience_terms", "economics_terms",
        "capital_cities", "countries", "jewish_last_names", "ologies",
    }  # fmt: skip
    assert set(sets) == decades | named
    assert model.ids[" red"] in sets["colors"]
    assert all(text.startswith(" ") for text in model.ids)
    assert all(len(words) >= 5 for words in token_sets.WORD_LISTS.values())


def table_of(rows):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(rows).T


def test_manhattan_table_labels_the_highest_above_the_threshold():
    scores = table_of({"colors": {4: 0.9, 5: 0.99, 6: 0.1, 7: 1.0}})
    table = tsea.manhattan_table(scores, label_threshold=1.0, top_n=2)
    heights = dict(zip(table["feature"], table["score"], strict=True))
    assert heights[4] == pytest.approx(-math.log(0.1))
    assert math.isfinite(heights[7])
    assert dict(zip(table["feature"], table["label"], strict=True)) == {
        4: "",
        5: "5",
        6: "",
        7: "7",
    }
    none = tsea.manhattan_table(scores, label_threshold=100, top_n=2)
    assert set(none["label"]) == {""}


def test_manhattan_plot_has_a_facet_for_every_set():
    pytest.importorskip("plotly")
    scores = table_of({"colors": {4: 0.9, 5: 0.2}, "names": {4: 0.3, 5: 0.8}})
    figure = tsea.manhattan_plot_enrichment_scores(scores, label_threshold=1.0, top_n=1)
    assert {annotation.text for annotation in figure.layout.annotations} == {"colors", "names"}
    assert {tuple(trace.text) for trace in figure.data} == {("4", ""), ("", "5")}


def test_projection_histograms_are_written(tmp_path, monkeypatch):
    plotly = pytest.importorskip("plotly.graph_objects")
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(plotly.Figure, "show", lambda self: shown.append(self))
    scores = table_of({"colors": {0: 0.1, 1: 0.9, 2: 0.5}})
    tsea.plot_top_k_feature_projections_by_token_and_category(
        {"colors": {0, 2}}, scores, "colors", WordModel(), torch.randn(3, 4), k=2
    )
    assert sorted(p.name for p in (tmp_path / "es_plots").iterdir()) == [
        "1_projection_onto_W_U_by_colors.html",
        "2_projection_onto_W_U_by_colors.html",
    ]
    assert len(shown) == 2
    with pytest.raises(ValueError, match="no token set 'shapes'"):
        tsea.plot_top_k_feature_projections_by_token_and_category(
            {}, scores, "shapes", WordModel(), torch.randn(3, 4)
        )


def test_both_homes_give_the_same_objects():
    for name in tutorial_tsea.__all__:
        assert getattr(tutorial_tsea, name) is getattr(tsea, name)


def test_importing_loads_no_optional_package_and_makes_no_file(tmp_path):
    code = (
        "import sys, sae_lens.analysis.tsea\n"
        "assert not {'plotly', 'nltk', 'babe'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
