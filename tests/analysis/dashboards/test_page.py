"""The page and its JSON twin; the page in a real browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sae_lens.analysis.dashboards import (
    FeatureDashboardData,
    FeatureRecord,
    Histogram,
    LogitEffect,
    Neighbor,
    Passage,
    write_dashboard_html,
    write_dashboard_json,
)

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WORDS = {0: "alpha", 1: " beta", 2: "\n    ", 3: "</script><b>", 4: "naïve", 5: " zebra"}


def record(index: int, word: int) -> FeatureRecord:
    passage = Passage([0, word, 1], [0.0, 2.5, 0.5], peak=1, row=4, position=9)
    return FeatureRecord(
        index=index,
        density=0.001 * (index + 1),
        l0_share=0.01,
        mean_activation=1.0,
        max_activation=2.5,
        histogram=Histogram(2.5, [5, 3, 1]),
        top=[passage, replace(passage, row=5)],
        quantiles=[[passage], [replace(passage, activations=[0.0, 0.5, 0.0])]],
        raised=[LogitEffect(1, 0.9)],
        lowered=[LogitEffect(4, -0.8)],
        neighbors=[Neighbor((index + 1) % 60, 0.5)],
    )


@pytest.fixture
def data() -> FeatureDashboardData:
    features = [record(i, 3 if i == 7 else 5 if i == 41 else 0) for i in range(60)]
    return FeatureDashboardData(
        "tiny", "blocks.0.hook_resid_pre", "topk", 4, 60, 1234, 5.0, WORDS, features, "Sixty"
    )


def test_json_holds_everything(data: FeatureDashboardData, tmp_path: Path) -> None:
    path = write_dashboard_json(data, tmp_path / "d.json")
    assert FeatureDashboardData.from_dict(json.loads(path.read_text("utf-8"))) == data


def test_the_page_needs_nothing_else(data: FeatureDashboardData, tmp_path: Path) -> None:
    page = write_dashboard_html(data, tmp_path / "d.html").read_text("utf-8")
    assert not re.search(r"https?://|<link|@import|<img|\bsrc=|\bfetch\(|url\(", page)
    assert "<title>Sixty</title>" in page


def test_a_token_cannot_end_the_script(data: FeatureDashboardData, tmp_path: Path) -> None:
    page = write_dashboard_html(data, tmp_path / "d.html").read_text("utf-8")
    packed = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert packed
    assert json.loads(packed[1])["vocabulary"][3] == "</script><b>"


def test_a_feature_that_was_not_collected(data: FeatureDashboardData) -> None:
    with pytest.raises(KeyError, match="Feature 99"):
        data.feature(99)


def find(browser: Chrome, selector: str) -> Any:
    return browser.find_element("css selector", selector)


@pytest.mark.browser
def test_search_page_and_read_in_a_browser(
    data: FeatureDashboardData, tmp_path: Path, browser: Chrome
) -> None:
    browser.get(write_dashboard_html(data, tmp_path / "d.html").as_uri())
    rows = browser.find_elements("css selector", ".row")
    assert [row.get_attribute("data-feature") for row in rows] == [str(i) for i in range(25)]
    assert find(browser, ".detail h2").text == "Feature 0"

    find(browser, ".next").click()
    assert find(browser, ".row").get_attribute("data-feature") == "25"
    find(browser, ".next").click()
    assert len(browser.find_elements("css selector", ".row")) == 10
    assert not find(browser, ".next").is_enabled()

    search = find(browser, ".search")
    search.send_keys("41")
    assert find(browser, ".detail h2").text == "Feature 41"
    assert find(browser, ".passage .peak").get_attribute("textContent") == " zebra"
    assert find(browser, ".passage .peak").get_attribute("title").endswith("2.5")
    assert "rgba" in find(browser, ".passage .peak").value_of_css_property("background-color")

    search.clear()
    search.send_keys("zebra")
    assert find(browser, ".row").get_attribute("data-feature") == "41"
    assert find(browser, ".raised .token").text == "␣beta"
    assert find(browser, ".lowered .token").text == "naïve"

    search.clear()
    search.send_keys("</script>")
    assert find(browser, ".row").get_attribute("data-feature") == "7"
    assert find(browser, ".passage .peak").text == "</script><b>"

    search.clear()
    search.send_keys("nothing has this")
    assert "No feature matches" in find(browser, ".rows").text
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.mark.browser
def test_theme_and_sampled_passages_in_a_browser(
    data: FeatureDashboardData, tmp_path: Path, browser: Chrome
) -> None:
    browser.get(write_dashboard_html(data, tmp_path / "d.html").as_uri())
    before = find(browser, "body").value_of_css_property("background-color")
    find(browser, "[data-action=theme]").click()
    assert find(browser, "body").value_of_css_property("background-color") != before
    find(browser, ".kinds button:last-child").click()
    groups = browser.find_elements("css selector", ".group")
    assert [group.text for group in groups] == [
        "Percentiles 100 to 50 of its activations",
        "Percentiles 50 to 0 of its activations",
    ]
