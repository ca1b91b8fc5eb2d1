"""Curves as an SVG picture, without a plotting package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_COLORS = ("#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00")
_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 190, 30, 50


def svg_of_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, title: str
) -> str:
    """A picture of one line for each name; the y axis goes from 0 to 1."""
    largest = max((x for points in curves.values() for x, _ in points), default=1.0) or 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + width * x / largest, _TOP + height * (1 - min(max(y, 0.0), 1.0))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for i in range(6):
        share = i / 5
        x, y = place(largest * share, share)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + width}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.1f}</text>'
            f'<text x="{x:.1f}" y="{_TOP + height + 18}" text-anchor="middle">'
            f"{largest * share:.3g}</text>"
        )
    parts.append(
        f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 12}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text x="16" y="{_TOP + height / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {_TOP + height / 2})">{escape(y_label)}</text>'
    )
    for i, (name, points) in enumerate(curves.items()):
        color = _COLORS[i % len(_COLORS)]
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in placed]
        y = _TOP + 14 + 18 * i
        parts.append(
            f'<rect x="{_WIDTH - _RIGHT + 16}" y="{y - 9}" width="10" height="10" fill="{color}"/>'
            f'<text x="{_WIDTH - _RIGHT + 32}" y="{y}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
