"""A report on trained SAEs: figures, training curves, firing densities, and their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from sae_lens.analysis.dashboards.charts import Points, line_chart, log_density_histogram
from sae_lens.analysis.dashboards.data import FeatureDashboardData
from sae_lens.analysis.dashboards.page import feature_browsers, masthead, write_page

_N_COLORS = 4


@dataclass(frozen=True)
class ReportedSAE:
    """What a report says about one SAE.

    Attributes:
        name: heading.
        figures: label -> text, the row of the table; all SAEs of a report have the same labels.
        curves: title -> points (training tokens, value).
        densities: share of the tokens on which each feature fires.
        features: what the report shows of single features.
    """

    name: str
    figures: Mapping[str, str]
    curves: Mapping[str, Points]
    densities: Sequence[float]
    features: FeatureDashboardData


def write_report_html(
    saes: Sequence[ReportedSAE],
    path: str | Path,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    note: str = "",
) -> Path:
    """Write one self-contained page about several SAEs side by side.

    Args:
        saes: In the order in which they are shown.
        path: The file.
        title: Heading of the page.
        lead: A sentence or two below it.
        facts: What all of them have in common, as label -> text.
        note: Said below the table.
    """
    shown = "".join(f"<span>{escape(k)} <b>{escape(v)}</b></span>" for k, v in facts.items())
    sources = {sae.name: sae.features for sae in saes}
    body = "\n".join(
        (
            masthead(title, lead),
            f'<div class="facts">{shown}</div>',
            "<h2>On held-out text</h2>",
            _table(saes),
            f'<p class="note">{escape(note)}</p>' if note else "",
            "<h2>Training</h2>",
            _legend(saes),
            f'<div class="charts">{_curves(saes)}</div>',
            "<h2>How often features fire</h2>",
            f'<div class="charts wide">{_densities(saes)}</div>',
            "<h2>Features</h2>",
            '<p class="lead">Shading shows how strongly the feature fires on each token, relative '
            "to its highest activation. Hover over a token for the value; press / to search.</p>",
            feature_browsers(sources),
        )
    )
    return write_page(path, title, body)


def _color(i: int) -> int:
    return i % _N_COLORS


def _table(saes: Sequence[ReportedSAE]) -> str:
    labels = list(saes[0].figures) if saes else []
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    rows = "".join(
        f'<tr><th scope="row"><span class="swatch f{_color(i)}"></span>{escape(sae.name)}</th>'
        + "".join(f"<td>{escape(sae.figures[label])}</td>" for label in labels)
        + "</tr>"
        for i, sae in enumerate(saes)
    )
    return (
        '<div class="panel table-scroll"><table class="figures"><thead><tr><th scope="col">SAE</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _legend(saes: Sequence[ReportedSAE]) -> str:
    entries = "".join(
        f'<span><span class="swatch f{_color(i)}"></span>{escape(sae.name)}</span>'
        for i, sae in enumerate(saes)
    )
    return f'<div class="facts legend">{entries}</div>'


def _curves(saes: Sequence[ReportedSAE]) -> str:
    titles = list(dict.fromkeys(title for sae in saes for title in sae.curves))
    colors = [_color(i) for i in range(len(saes))]
    return "".join(
        line_chart(
            title,
            "",
            {sae.name: sae.curves.get(title, ()) for sae in saes},
            "training tokens",
            colors,
        )
        for title in titles
    )


def _densities(saes: Sequence[ReportedSAE]) -> str:
    return "".join(
        log_density_histogram(sae.name, sae.densities, _color(i)) for i, sae in enumerate(saes)
    )
