"""Line charts and histograms as inline SVG; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

# Drawn about as wide as they are shown, so that text keeps its size.
_NARROW, _WIDE = 290, 600
_HEIGHT = 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 26

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str, unit: str, series: Mapping[str, Points], x_label: str, colors: Sequence[int]
) -> str:
    """Curves over a common x axis.

    Args:
        title: What is drawn.
        unit: Said behind the title.
        series: Points (x, y) per curve, x ascending; empty ones are left out.
        x_label: Below the axis.
        colors: Number of each curve's colour in the page's palette.
    """
    drawn = {name: points for name, points in series.items() if points}
    xs = [x for points in drawn.values() for x, _ in points] or [0.0, 1.0]
    # The first wild steps of training would flatten all the rest; they leave the chart at its edge.
    settled = [y for points in drawn.values() for x, y in points if x >= 0.05 * max(xs)]
    y_ticks = ticks(min(settled, default=0.0), max(settled, default=1.0))
    frame = _Frame(_NARROW, 0.0, max(xs) or 1.0, y_ticks[0], y_ticks[-1])
    parts = [frame.grid(y_ticks)]
    for (name, points), color in zip(series.items(), colors, strict=True):
        if not points:
            continue
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        last = number(points[-1][1])
        parts.append(
            f'<polyline class="curve s{color}" points="{path}">'
            f"<title>{escape(name)}: {last} at the end</title></polyline>"
        )
    for x in ticks(0.0, frame.x_high, 4):
        if x <= frame.x_high:
            parts.append(frame.x_tick(x, number(x)))
    return _figure(title, unit, "".join(parts), x_label, _NARROW)


def log_density_histogram(title: str, densities: Sequence[float], color: int) -> str:
    """How many features fire how often: densities in bins of a third of a decade.

    Features that never fire stand apart on the left.
    """
    low, high, per_decade = -6, 0, 3
    counts = [0] * ((high - low) * per_decade)
    never = 0
    for density in densities:
        if density <= 0:
            never += 1
            continue
        place = int((math.log10(density) - low) * per_decade)
        counts[min(max(place, 0), len(counts) - 1)] += 1
    y_ticks = ticks(0.0, float(max(*counts, never, 1)))
    frame = _Frame(_WIDE, low - 1.0, float(high), 0.0, y_ticks[-1])
    parts = [frame.grid(y_ticks)]
    parts.append(frame.bar(low - 0.85, low - 0.35, never, color, f"never: {never} features"))
    for i, count in enumerate(counts):
        start = low + i / per_decade
        said = f"{number(10**start)} to {number(10 ** (start + 1 / per_decade))}: {count} features"
        parts.append(frame.bar(start + 0.02, start + 1 / per_decade - 0.02, count, color, said))
    parts.append(frame.x_tick(low - 0.6, "never"))
    parts += [frame.x_tick(x, f"10{_superscript(x)}" if x else "1") for x in range(low, high + 1)]
    return _figure(title, f"{len(densities):,} features", "".join(parts), "share of tokens", _WIDE)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that enclose a range, at least two."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    raw = span / max(count - 1, 1)
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Short: 1.2M, 340k, 0.83, 3e-5."""
    size = abs(value)
    if size >= 999_500:
        return f"{value / 1e6:.3g}M"
    if size >= 10_000:
        return f"{value / 1e3:.3g}k"
    if size and size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"


class _Frame:
    """From data to pixels."""

    def __init__(self, width: int, x_low: float, x_high: float, y_low: float, y_high: float):
        self.width = width
        self.x_low, self.x_high, self.y_low, self.y_high = x_low, x_high, y_low, y_high

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = min(max((value - self.y_low) / (self.y_high - self.y_low), 0.0), 1.0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self, values: Sequence[float]) -> str:
        lines = (
            f'<line class="{"axis" if i == 0 else "grid"}" x1="{_LEFT}" x2="{self.width - _RIGHT}" '
            f'y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"/>'
            f'<text x="{_LEFT - 7}" y="{self.y(v) + 4:.1f}" text-anchor="end">{number(v)}</text>'
            for i, v in enumerate(values)
        )
        return "".join(lines)

    def x_tick(self, value: float, text: str) -> str:
        x, y = self.x(value), _HEIGHT - _BOTTOM + 16
        return f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>'

    def bar(self, start: float, end: float, height: float, color: int, said: str) -> str:
        if height <= 0:
            return ""
        left, width = self.x(start), self.x(end) - self.x(start)
        floor = self.y(0)
        top = min(self.y(height), floor - 1)  # one feature among hundreds can still be seen
        return (
            f'<rect class="bar f{color}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{floor - top:.1f}" rx="1.5"><title>{escape(said)}</title></rect>'
        )


def _figure(title: str, unit: str, inside: str, x_label: str, width: int) -> str:
    return (
        f'<figure class="panel chart"><figcaption>{escape(title)} <span>{escape(unit)}</span>'
        f'</figcaption><svg viewBox="0 0 {width} {_HEIGHT + 14}" role="img" '
        f'aria-label="{escape(title)}">{inside}'
        f'<text x="{(_LEFT + width - _RIGHT) / 2}" y="{_HEIGHT + 11}" text-anchor="middle">'
        f"{escape(x_label)}</text></svg></figure>"
    )


def _superscript(value: int) -> str:
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
