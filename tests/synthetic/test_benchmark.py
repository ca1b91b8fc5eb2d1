"""The benchmark trains every architecture, and the command reports it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from sae_lens.cli.main import main
from sae_lens.synthetic import BenchmarkConfig, SyntheticConfig, architectures, run_benchmark
from sae_lens.synthetic.plot import svg_of_curves

SMALL = SyntheticConfig(
    d_in=16, n_features=24, mean_l0=2.0, n_correlated_pairs=2, n_children=2, zipf=0.3
)


@pytest.mark.parametrize("architecture", architectures())
def test_every_architecture_finds_features(architecture: str):
    cfg = BenchmarkConfig(
        data=SMALL, architectures=(architecture,), l0s=(2.0,), n_steps=150, batch_size=64, lr=1e-2
    )
    before = torch.get_rng_state()
    (result,) = run_benchmark(cfg)
    assert torch.equal(before, torch.get_rng_state())
    untrained = BenchmarkConfig(
        data=SMALL, architectures=(architecture,), l0s=(2.0,), n_steps=1, batch_size=64, lr=0.0
    )
    (start,) = run_benchmark(untrained)
    assert result.recovery.mcc > start.recovery.mcc + 0.05
    assert result.recovery.explained_variance > 0.2
    assert result.recovery.l0 < 8


def test_the_command_writes_results_and_a_picture(tmp_path: Path, capsys: Any):
    arguments = (
        "synth --architectures topk batchtopk --l0 2 3 --d-in 8 --n-features 40 --mean-l0 2 "
        f"--steps 3 --batch-size 16 --output {tmp_path}"
    )
    assert main(arguments.split()) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:4] == ["architecture", "wanted", "l0", "mcc"]
    assert [line.split()[0] for line in printed[1:5]] == ["topk"] * 2 + ["batchtopk"] * 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["results"]) == 4
    assert results["config"]["n_steps"] == 3
    picture = ElementTree.fromstring((tmp_path / "recovery.svg").read_text())
    assert sum(element.tag.endswith("polyline") for element in picture) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--architectures nonsense", "the benchmark knows topk"),
        ("--l0 0", "must lie between 1 and d_sae=128"),
        ("--mean-l0 1000", "can be active on average"),
    ],
)
def test_bad_calls_end_with_a_reason(arguments: str, message: str, capsys: Any):
    assert main(["synth", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_picture_of_nothing_is_a_picture():
    ElementTree.fromstring(svg_of_curves({}, "x", "y", "a < b"))
