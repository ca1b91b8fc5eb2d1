"""The documented table of releases is complete, and the interoperability table is good news."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sae_lens.loading import directory
from sae_lens.loading.converters import CONVERTERS

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def releases_table() -> str:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "_hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    on_page_markdown: Callable[[str], str] = hooks.on_page_markdown
    return on_page_markdown("<!-- releases -->")


def test_every_release_has_a_row(releases_table: str) -> None:
    rows = re.findall(r"<tr data-ids.*?</tr>", releases_table)
    assert len(rows) == len(directory.registry())
    counted = 0
    for row, release in zip(rows, directory.registry().values(), strict=True):
        assert f"<code>{release.name}</code>" in row
        assert f"huggingface.co/{release.repo_id}'" in row
        counted += int(re.findall(r"<td>(\d+)</td>", row)[0])
    assert counted == 13_857


def test_every_format_is_documented() -> None:
    text = (DOCS / "pretrained_saes.md").read_text(encoding="utf-8")
    for name in CONVERTERS:
        assert f"`{name}`" in text


def test_interoperability_is_proven_for_three_releases() -> None:
    text = (DOCS / "interop.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    heads, results = rows[0], rows[2:]
    assert [head.strip().split(":")[0] for head in heads[1:]] == (
        ["5.2.1"] * 2 + ["5.11.0"] * 2 + ["6.54.12"] * 2
    )
    for name, *cells in results:
        assert {cell.strip() for cell in cells} <= {"equal", ""}, name
    both = [name.strip() for name, *cells in results if all(cell.strip() for cell in cells)]
    for architecture in ("standard", "gated", "jumprelu", "topk"):
        assert f"{architecture}-none" in both


@pytest.mark.browser
def test_the_table_can_be_searched(releases_table: str, tmp_path: Path, browser: Chrome) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<html><body>{releases_table}</body></html>", encoding="utf-8")
    browser.get(page.as_uri())
    field = browser.find_element("id", "release-search")
    count = browser.find_element("id", "release-count")
    assert count.text == "170 of 170 releases"
    field.send_keys("gpt2 hook_z")
    shown = [row for row in browser.find_elements("css selector", "tbody tr") if row.is_displayed()]
    assert [row.find_element("tag name", "code").text for row in shown] == ["gpt2-small-hook-z-kk"]
    assert count.text == "1 of 170 releases"
