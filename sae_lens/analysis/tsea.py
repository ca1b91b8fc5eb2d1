"""Token-set enrichment: which kinds of tokens does a feature promote?

The method is gene-set enrichment analysis with tokens in the place of genes: order the vocabulary
by a feature's effect on the logits and see whether the members of a set crowd together at one end
(Subramanian et al. 2005, "Gene set enrichment analysis"; applied to sparse autoencoders by Bloom,
"Understanding SAE features with the logit lens", 2024). Here the running sum is unweighted: every
member adds 1/|S|, every other token subtracts 1/(V − |S|), and the score is the largest absolute
value reached, as in the Kolmogorov-Smirnov statistic.

Plots need plotly, the part-of-speech sets nltk, the longer name lists the package `babe`; each is
imported by the function that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.analysis import token_sets

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from transformer_lens import HookedTransformer

PADDING = -1

# How byte-pair tokenizers write a leading space: GPT-2's and SentencePiece's.
SPACE_MARKS = ("Ġ", "▁")

# Elements of one [sets, features, vocabulary] block of running sums (float32: 256 MiB).
BLOCK_ELEMENTS = 2**26


def get_enrichment_df(
    projections: Float[Tensor, "n_features vocabulary"],
    features: list[int],
    gene_sets_selected: dict[str, set[int]],
) -> pd.DataFrame:
    """Enrichment scores as a table: one row per set, one column per feature.

    Args:
        projections: effect of every feature on every token's logit, such as `W_dec @ W_U`.
        features: the rows of `projections` to look at; they name the columns.
        gene_sets_selected: set name -> token ids. The caller's sets are left as they are.

    Raises:
        ValueError: when a set is empty, or an id is outside the vocabulary.
    """
    import pandas as pd

    padded = pad_gene_sets(gene_sets_selected)
    index_lists = torch.tensor(list(padded.values()), dtype=torch.long)
    try:
        scores = calculate_batch_enrichment_scores(projections[features], index_lists)
    except ValueError as error:
        raise ValueError(f"{error} The sets are {list(padded)}.") from error
    return pd.DataFrame(scores.cpu().numpy(), index=list(padded), columns=list(features))


def calculate_batch_enrichment_scores(
    scores: Float[Tensor, "n_features vocabulary"], index_lists: Int[Tensor, "n_sets length"]
) -> Float[Tensor, "n_sets n_features"]:
    """The enrichment score of every set for every feature.

    Args:
        scores: one number per feature and token.
        index_lists: token ids of each set, padded with -1.

    Returns:
        The largest absolute running sum, between 0 and 1, [n_sets, n_features].

    Raises:
        ValueError: when a set is empty, holds the whole vocabulary, or an id lies outside it.
    """
    n_features, vocabulary = scores.shape
    membership = _membership(index_lists.to(scores.device), vocabulary)
    sizes = membership.sum(dim=-1)
    for number in torch.nonzero((sizes == 0) | (sizes == vocabulary)).flatten().tolist():
        raise ValueError(
            f"Set number {number} holds {int(sizes[number])} of {vocabulary} tokens; enrichment "
            "needs at least one member and one other token."
        )
    hit = (1 / sizes).to(torch.float32)
    miss = (1 / (vocabulary - sizes)).to(torch.float32)

    result = torch.empty(len(index_lists), n_features, device=scores.device)
    step = max(1, BLOCK_ELEMENTS // (vocabulary * max(1, len(index_lists))))
    for start in range(0, n_features, step):
        order = scores[start : start + step].argsort(dim=-1, descending=True)
        members = membership[:, order]  # [n_sets, features, vocabulary]
        steps = torch.where(members, hit[:, None, None], -miss[:, None, None])
        running = steps.cumsum(dim=-1)
        result[:, start : start + step] = running.abs().amax(dim=-1)
    return result


def _membership(index_lists: Tensor, vocabulary: int) -> Tensor:
    """Boolean [n_sets, vocabulary] of padded id lists."""
    if int(index_lists.max()) >= vocabulary or int(index_lists.min()) < PADDING:
        raise ValueError(
            f"Token ids between {int(index_lists.min())} and {int(index_lists.max())} were given; "
            f"allowed are 0 to {vocabulary - 1}, and {PADDING} as padding."
        )
    # Padding goes to one column more, which is cut off again.
    columns = torch.where(index_lists == PADDING, vocabulary, index_lists)
    shape = (len(index_lists), vocabulary + 1)
    members = torch.zeros(shape, dtype=torch.bool, device=index_lists.device)
    return members.scatter_(1, columns, True)[:, :vocabulary]


def pad_gene_sets(gene_sets_token_ids: Mapping[str, set[int]]) -> dict[str, list[int]]:
    """The sets as sorted lists of equal length, filled up with -1. The argument is not changed."""
    longest = max((len(ids) for ids in gene_sets_token_ids.values()), default=0)
    return {
        name: sorted(ids) + [PADDING] * (longest - len(ids))
        for name, ids in gene_sets_token_ids.items()
    }


def manhattan_plot_enrichment_scores(
    df_enrichment_scores: pd.DataFrame, label_threshold: float = 1.0, top_n: int = 3
) -> go.Figure:
    """Scatter of −ln(1 − score) over features, one facet per set.

    Args:
        df_enrichment_scores: the table of `get_enrichment_df`.
        label_threshold: only points above it (on the plotted scale) are labelled.
        top_n: how many points of each set are labelled at most.
    """
    import plotly.express as px

    table = manhattan_table(df_enrichment_scores, label_threshold, top_n)
    figure = px.scatter(
        table,
        x="feature",
        y="score",
        color="token_set",
        facet_col="token_set",
        facet_col_wrap=4,
        text="label",
        hover_data=["feature"],
        labels={"score": "−ln(1 − enrichment score)", "feature": "feature"},
    )
    figure.update_traces(marker={"size": 4}, textposition="top center")
    figure.for_each_annotation(lambda a: a.update(text=a.text.split("=")[-1]))
    figure.update_layout(showlegend=False)
    return figure


def manhattan_table(
    df_enrichment_scores: pd.DataFrame, label_threshold: float = 1.0, top_n: int = 3
) -> pd.DataFrame:
    """What the Manhattan plot shows: columns token_set, feature, score (−ln(1 − score)), label."""
    import numpy as np
    import pandas as pd

    rows = []
    for name, scores in df_enrichment_scores.iterrows():
        # A perfect score of 1 would be infinitely high; the clip keeps it on the plot.
        height = -np.log1p(-np.clip(scores.to_numpy(dtype=float), 0, 1 - 1e-9))
        labelled = set(np.argsort(-height, kind="stable")[:top_n])
        for position, (feature, value) in enumerate(zip(scores.index, height, strict=True)):
            shown = position in labelled and value > label_threshold
            rows.append((name, feature, value, str(feature) if shown else ""))
    return pd.DataFrame(rows, columns=["token_set", "feature", "score", "label"])


def plot_top_k_feature_projections_by_token_and_category(
    gene_sets_selected: dict[str, set[int]],
    df_enrichment_scores: pd.DataFrame,
    category: str,
    model: HookedTransformer,
    dec_projection_onto_W_U: Float[Tensor, "n_features vocabulary"],
    k: int = 5,
    projection_onto: str = "W_U",
    features: list[int] | None = None,
    log_y: bool = True,
    histnorm: str | None = None,
) -> None:
    """Show and write one histogram per feature: the set's tokens against all others.

    Args:
        gene_sets_selected: set name -> token ids.
        df_enrichment_scores: the table of `get_enrichment_df`.
        category: the set to look at, a row of the table.
        model: supplies the text of every token.
        dec_projection_onto_W_U: effect of every feature on every logit.
        k: how many of the features that score highest are drawn, unless `features` is given.
        projection_onto: name of what the decoder was projected onto, for titles and file names.
        features: draw these instead.
        log_y: logarithmic counts.
        histnorm: handed to plotly.

    Each figure is written to the folder `es_plots` under the working directory, as
    `{feature}_projection_onto_{projection_onto}_by_{category}.html`.

    Raises:
        ValueError: when the category is no row of the table.
    """
    import pandas as pd
    import plotly.express as px

    if category not in df_enrichment_scores.index or category not in gene_sets_selected:
        raise ValueError(
            f"There is no token set {category!r}; the table has {list(df_enrichment_scores.index)}."
        )
    if features is None:
        ranked = df_enrichment_scores.loc[category].sort_values(ascending=False)
        features = [int(feature) for feature in ranked.index[:k]]
    vocabulary = dec_projection_onto_W_U.shape[1]
    tokens = [model.to_string(torch.tensor([token])) for token in range(vocabulary)]
    members = [token in gene_sets_selected[category] for token in range(vocabulary)]

    folder = Path("es_plots")
    folder.mkdir(exist_ok=True)
    for feature in features:
        table = pd.DataFrame(
            {
                "projection": dec_projection_onto_W_U[feature].detach().float().cpu().numpy(),
                "token": tokens,
                category: members,
            }
        )
        figure = px.histogram(
            table,
            x="projection",
            color=category,
            marginal="rug",
            hover_data=["token"],
            barmode="overlay",
            log_y=log_y,
            histnorm=histnorm,
            title=f"Feature {feature}: projection onto {projection_onto}, by {category}",
        )
        figure.show()
        name = f"{feature}_projection_onto_{projection_onto}_by_{category}.html"
        figure.write_html(folder / name)


def get_baby_name_sets(vocab: dict[str, int], k: int = 300) -> dict[str, list[int]]:
    """Token ids of the k most common names of boys and girls: keys `boy_names`, `girl_names`.

    The names come from the package `babe` (US registrations) when it is installed, from short
    built-in lists otherwise. Only names that are one token with a leading space count.
    """
    boys, girls = _name_lists(k)
    return {
        "boy_names": [vocab[mark + n] for n in boys for mark in _marks(vocab, n)],
        "girl_names": [vocab[mark + n] for n in girls for mark in _marks(vocab, n)],
    }


def _marks(vocab: Mapping[str, int], word: str) -> list[str]:
    return [mark for mark in SPACE_MARKS if mark + word in vocab]


def _name_lists(k: int) -> tuple[Sequence[str], Sequence[str]]:
    try:
        from babe import UsNames  # pyright: ignore[reportMissingImports]
    except ImportError:
        return token_sets.BOYS_NAMES[:k], token_sets.GIRLS_NAMES[:k]
    table = UsNames().us_names_national
    counts = table.groupby(["gender", "name"])["births"].sum().reset_index()
    most = counts.sort_values("births", ascending=False)
    return (
        most[most["gender"] == "M"]["name"].head(k).tolist(),
        most[most["gender"] == "F"]["name"].head(k).tolist(),
    )


def _without_space_mark(token: str) -> str:
    return token[1:] if token.startswith(SPACE_MARKS) else token


def get_letter_gene_sets(vocab: dict[str, int]) -> dict[str, set[int]]:
    """Tokens by their first letter, lower-cased: purely alphabetic ones, a leading space aside.

    The keys are the letters a to z; a letter that no token begins with has an empty set.
    """
    sets: dict[str, set[int]] = {letter: set() for letter in "abcdefghijklmnopqrstuvwxyz"}
    for token, index in vocab.items():
        word = _without_space_mark(token)
        if word.isalpha() and word[0].lower() in sets:
            sets[word[0].lower()].add(index)
    return sets


def generate_pos_sets(vocab: dict[str, int]) -> dict[str, set[int]]:
    """Tokens by part of speech: keys `nltk_pos_<tag>` with the tags of the Penn treebank.

    Raises:
        ImportError: without nltk.
        LookupError: when nltk lacks its tagger; its message names the download.
    """
    try:
        import nltk  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "Part-of-speech sets need nltk: pip install nltk, then "
            "python -m nltk.downloader averaged_perceptron_tagger_eng"
        ) from error
    return group_by_tag(vocab, lambda word: nltk.pos_tag([word])[0][1])


def group_by_tag(vocab: Mapping[str, int], tag_of: Callable[[str], str]) -> dict[str, set[int]]:
    """Token ids by `nltk_pos_<tag>`, where `tag_of` tags one word (leading space removed)."""
    sets: dict[str, set[int]] = {}
    for token, index in vocab.items():
        word = _without_space_mark(token)
        if word:
            sets.setdefault(f"nltk_pos_{tag_of(word)}", set()).add(index)
    return sets


def get_gene_set_from_regex(vocab: dict[str, int], pattern: str) -> set[int]:
    """Ids of the tokens that `pattern` matches, beginning at the token's start."""
    compiled = re.compile(pattern)
    return {index for token, index in vocab.items() if compiled.match(token)}


def get_test_gene_sets(model: HookedTransformer) -> dict[str, set[int]]:
    """The built-in word lists as sets of token ids.

    Each word is tokenised with a leading space, without the beginning-of-sequence token, and all
    its tokens belong to the set.
    """
    return {
        name: {token for word in words for token in _token_ids(model, f" {word}")}
        for name, words in token_sets.WORD_LISTS.items()
    }


def _token_ids(model: Any, text: str) -> list[int]:
    return model.to_tokens(text, prepend_bos=False).flatten().tolist()
