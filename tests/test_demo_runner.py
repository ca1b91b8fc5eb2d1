"""The demo, with little training: what it leaves and what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from sae_lens.demo_runner import (
    DemoResult,
    DemoSettings,
    as_table,
    run_demo,
    spread_features,
)
from sae_lens.saes import SAE

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SETTINGS = DemoSettings(training_tokens=8192, eval_prompts=16, n_features=30, dashboard_tokens=4096)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo"), SETTINGS, said.append)


def test_it_leaves_two_saes_that_load(demo: DemoResult) -> None:
    assert [sae.name for sae in demo.saes] == ["topk", "jumprelu"]
    for result in demo.saes:
        sae = SAE.load_from_disk(result.folder)
        assert (sae.cfg.architecture, sae.cfg.d_in, sae.cfg.d_sae) == (result.name, 128, 2048)
        assert sae.encode(torch.randn(3, 128)).shape == (3, 2048)


def test_it_tells_a_table_with_every_figure(demo: DemoResult, said: list[str]) -> None:
    table = next(text for text in said if "CE-loss score" in text)
    header, _, topk, jumprelu = table.splitlines()
    for name in ("L0", "explained variance", "CE-loss score", "KL score", "dead", "tokens/s"):
        assert name in header
    assert topk.startswith("topk") and jumprelu.startswith("jumprelu")
    assert f"{demo.saes[0].explained_variance:.3f}" in topk
    assert demo.saes[0].l0 == pytest.approx(32, abs=0.5)
    assert 0 < demo.saes[0].explained_variance < 1
    assert any(demo.report.as_uri() in text for text in said)


def test_curves_come_from_training(demo: DemoResult) -> None:
    for sae in demo.saes:
        for title in ("Explained variance", "L0", "Squared error", "Dead features"):
            tokens = [x for x, _ in sae.curves[title]]
            assert tokens == sorted(tokens) and tokens[-1] <= 8192


def test_the_report_stands_alone(demo: DemoResult) -> None:
    page = demo.report.read_text("utf-8")
    assert not re.search(r"https?://(?!)|<link|<img|\bsrc=|\bfetch\(", page)
    assert page.count("<figure") == 4 + 2


@pytest.mark.filterwarnings("ignore:Dataset is not tokenized")
def test_the_analysis_section_of_the_readme_runs(
    demo: DemoResult,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = (repository / "README.md").read_text("utf-8").split("## Analyse")[1]
    code = section.split("```python")[1].split("```")[0]
    (tmp_path / "demo_output").symlink_to(demo.saes[0].folder.parent)
    monkeypatch.chdir(tmp_path)
    few = "n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1"
    code = code.replace("n_eval_reconstruction_batches=2", few)
    exec(compile(code, "README.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out.split()[-1]) < 1


@pytest.mark.browser
def test_the_report_in_a_browser(demo: DemoResult, browser: Chrome) -> None:
    browser.get(demo.report.as_uri())
    cells = browser.find_elements("css selector", "table.figures tbody th")
    assert [cell.text for cell in cells] == ["topk", "jumprelu"]
    assert len(browser.find_elements("css selector", ".charts polyline")) == 8
    shown = "section.browser:not([hidden])"
    rows = browser.find_elements("css selector", f"{shown} .row")
    assert len(rows) == 25  # the first page of thirty
    browser.find_element("css selector", f"{shown} .next").click()
    assert len(browser.find_elements("css selector", f"{shown} .row")) == 5
    assert browser.find_elements("css selector", f"{shown} .passage .peak")
    assert len(browser.find_elements("css selector", f"{shown} .raised .token")) == 10
    browser.find_element("css selector", "[data-reveals=source-1]").click()
    assert browser.find_element("css selector", f"{shown} .detail h2").text.startswith("Feature ")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_features_are_spread_from_frequent_to_rare() -> None:
    densities = [0.0, 0.5, 0.01, 0.2, 1e-6, 0.03]
    assert spread_features(densities, 4) == [1, 3, 5, 2]
    assert spread_features(densities, 2) == [3, 2]
    assert spread_features(densities, 9) == [1, 3, 5, 2, 4]
    assert spread_features([0.0, 0.0], 1) == [1]


def test_table_columns_are_aligned() -> None:
    assert as_table([{"a": "x", "long": "1"}, {"a": "yy", "long": "22"}]).splitlines() == [
        "a   long",
        "--  ----",
        "x      1",
        "yy    22",
    ]
