"""A picture of what was recovered, by matplotlib (in the extra `viz`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sae_lens.synthetic.architectures import kind_of

if TYPE_CHECKING:
    from sae_lens.synthetic.benchmark import BenchmarkResult

_TITLES = {
    "sae": "SAEs",
    "transcoder": "Transcoders",
    "crosscoder": "Crosscoders",
    "cross_layer_transcoder": "Cross-layer transcoders",
}


def recovery_svg(results: Sequence[BenchmarkResult], true_l0: float) -> str:
    """Mean correlation coefficient against L0, a line for each architecture, a panel for each kind.

    Args:
        results: what was measured.
        true_l0: how many true features are active on average; marked by a line.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'The picture is drawn by matplotlib: pip install "sae-lens[viz]".'
        ) from error
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for result in results:
        of_kind = points.setdefault(kind_of(result.architecture), {})
        found = result.recovery
        of_kind.setdefault(result.architecture, []).append((found.l0, found.mcc))
    n_columns = min(2, max(1, len(points)))
    n_rows = max(1, -(-len(points) // n_columns))
    figure = Figure(figsize=(5.2 * n_columns, 3.4 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).flat
    for panel in panels[len(points) :]:
        panel.remove()
    for panel, (kind, curves) in zip(panels, points.items(), strict=False):
        panel.axvline(true_l0, color="grey", linewidth=0.8, linestyle=":")
        for name, curve in curves.items():
            short = name if kind == "sae" else name.removesuffix(kind).rstrip("_") or "relu"
            panel.plot(*zip(*sorted(curve), strict=True), marker="o", markersize=4, label=short)
        panel.set(title=_TITLES[kind], xlim=(0, None), ylim=(0, 1.02))
        panel.legend(fontsize=7, loc="lower right", ncols=2 if len(curves) > 4 else 1)
        panel.grid(alpha=0.3)
    figure.supxlabel("active latents (L0); dotted: true features active")
    figure.supylabel("mean correlation coefficient")
    drawn = io.StringIO()
    # without a date, with fixed ids, so that equal results give equal files
    with rc_context({"svg.hashsalt": "sae-lens", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
