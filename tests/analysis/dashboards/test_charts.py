"""Charts as inline SVG."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens.analysis.dashboards.charts import line_chart, log_density_histogram, number, ticks


@given(low=st.floats(-1e6, 1e6), span=st.floats(0, 1e6), count=st.integers(2, 8))
def test_ticks_enclose_the_range_evenly(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count)
    width = found[1] - found[0]
    assert 2 <= len(found) <= count + 3
    slack = 1e-6 * max(1, abs(low), abs(low + span), width)  # invisible in a chart
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert all(b - a == pytest.approx(width) for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (0.00003, "3e-5"), (1234, "1234"), (20_000, "20k"), (1.5e6, "1.5M")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_curves_run_from_the_first_to_the_last_point() -> None:
    chart = line_chart("Loss", "nats", {"a": [(0, 1.0), (10, 0.5)], "b": []}, "tokens", [0, 1])
    tree = ElementTree.fromstring(chart)
    (curve,) = tree.findall(".//polyline")
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in curve.attrib["points"].split())
    assert x0 < x1 and y0 < y1  # downwards on the screen
    assert curve.attrib["class"] == "curve s0"


def test_a_chart_without_points_is_still_a_chart() -> None:
    assert ElementTree.fromstring(line_chart("Loss", "", {"a": []}, "tokens", [0])) is not None


def test_every_feature_is_in_a_bar() -> None:
    densities = [0.0, 0.0, 1e-9, 1e-5, 2e-3, 2.1e-3, 1.0]
    chart = log_density_histogram("topk", densities, 0)
    counts = [int(n) for n in re.findall(r": (\d+) features", chart)]
    assert sum(counts) == len(densities)
    assert "never: 2 features" in chart
    ElementTree.fromstring(chart)
