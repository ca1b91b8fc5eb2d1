"""The data of a dashboard as one HTML file that opens from disk, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from sae_lens.analysis.dashboards.data import FeatureDashboardData, FeatureRecord, Passage
from sae_lens.atomic_files import atomic_write_bytes, atomic_write_json

_ASSETS = Path(__file__).parent / "assets"


def write_dashboard_html(data: FeatureDashboardData, path: str | Path) -> Path:
    """Write one self-contained page: nothing is loaded from elsewhere, no server is needed.

    Args:
        data: What `collect_feature_data` gave.
        path: The file. It is replaced whole or not at all.

    Returns:
        `path`.
    """
    body = (
        f"{masthead(data.title, 'What each feature fires on, and what it makes the model say.')}"
        f"{facts_line(data)}"
        f"{feature_browsers({'features': data})}"
    )
    return write_page(path, data.title, body)


def write_dashboard_json(data: FeatureDashboardData, path: str | Path) -> Path:
    """Write the same data as JSON; `FeatureDashboardData.from_dict` reads it back."""
    atomic_write_json(path, data.to_dict())
    return Path(path)


def write_page(path: str | Path, title: str, body: str) -> Path:
    """A whole HTML document with our style and script inside."""
    style = (_ASSETS / "page.css").read_text(encoding="utf-8")
    script = (_ASSETS / "browser.js").read_text(encoding="utf-8")
    document = (
        '<!doctype html>\n<html lang="en" data-theme="light">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body>\n<main class="wrap">\n{body}\n</main>\n<script>\n{script}</script>\n'
        "</body>\n</html>\n"
    )
    atomic_write_bytes(path, document.encode("utf-8"))
    return Path(path)


def masthead(title: str, lead: str) -> str:
    """The heading of a page, with the switch between light and dark."""
    return (
        f'<header class="masthead"><div><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p></div>'
        '<button class="button" type="button" data-action="theme">Light / dark</button></header>'
    )


def facts_line(data: FeatureDashboardData) -> str:
    """What the features are of, and on how many tokens they were watched."""
    facts = {
        "model": data.model_name,
        "hook": data.hook_name,
        "architecture": data.architecture,
        "features": f"{len(data.features):,} of {data.d_sae:,}",
        "L0": f"{data.l0:.1f}",
        "tokens read": f"{data.n_tokens:,}",
    }
    shown = "".join(f"<span>{name} <b>{escape(value)}</b></span>" for name, value in facts.items())
    return f'<div class="facts">{shown}</div>'


def feature_browsers(sources: Mapping[str, FeatureDashboardData]) -> str:
    """A searchable list of features with their details; one tab per source when there are more."""
    tabs = "".join(
        f'<button class="button" type="button" role="tab" data-reveals="source-{i}">'
        f"{escape(name)}</button>"
        for i, name in enumerate(sources)
    )
    parts = [f'<div class="tabs" role="tablist">{tabs}</div>'] if len(sources) > 1 else []
    for i, data in enumerate(sources.values()):
        packed = json.dumps(_packed(data), ensure_ascii=False, separators=(",", ":"))
        packed = packed.replace("<", "\\u003c")  # a token may be `</script>`
        parts.append(f'<script type="application/json" id="source-{i}">{packed}</script>')
        parts.append(f'<section class="browser" data-source="source-{i}"></section>')
    return "\n".join(parts)


def _packed(data: FeatureDashboardData) -> dict[str, Any]:
    """The data in the shape that the script reads: token ids renumbered, zeros left out."""
    number = {token: i for i, token in enumerate(data.vocabulary)}
    return {
        "vocabulary": list(data.vocabulary.values()),
        "features": [_packed_record(record, number) for record in data.features],
    }


def _packed_record(record: FeatureRecord, number: dict[int, int]) -> dict[str, Any]:
    return {
        "i": record.index,
        "density": float(f"{record.density:.4g}"),
        "l0": float(f"{record.l0_share:.4g}"),
        "mean": record.mean_activation,
        "max": record.max_activation,
        "histogram": [record.histogram.upper, record.histogram.counts],
        "top": [_packed_passage(passage, number) for passage in record.top],
        "quantiles": [[_packed_passage(p, number) for p in group] for group in record.quantiles],
        "up": [[number[effect.token], round(effect.value, 3)] for effect in record.raised],
        "down": [[number[effect.token], round(effect.value, 3)] for effect in record.lowered],
        "near": [[near.feature, round(near.cosine, 3)] for near in record.neighbors],
    }


def _packed_passage(passage: Passage, number: dict[int, int]) -> list[Any]:
    fired = [v for i, act in enumerate(passage.activations) if act > 0 for v in (i, act)]
    tokens = [number[token] for token in passage.tokens]
    return [tokens, fired, passage.peak, passage.row, passage.position]
