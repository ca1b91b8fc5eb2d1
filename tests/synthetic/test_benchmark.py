"""The benchmark trains every architecture, and the command reports it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from sae_lens.cli.main import main
from sae_lens.synthetic import (
    BenchmarkConfig,
    BenchmarkResult,
    Recovery,
    SyntheticConfig,
    architectures,
    run_benchmark,
    train_on_synthetic,
)
from sae_lens.synthetic.plot import recovery_svg

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
    ElementTree.fromstring((tmp_path / "recovery.svg").read_text())


def test_what_is_known_outlives_an_interruption(tmp_path: Path, monkeypatch: Any) -> None:
    def interrupted(*args: Any) -> Any:
        if args[0] == "batchtopk":
            raise KeyboardInterrupt
        return train_on_synthetic(*args)

    monkeypatch.setattr("sae_lens.synthetic.benchmark.train_on_synthetic", interrupted)
    arguments = (
        f"synth --architectures topk batchtopk --l0 2 --steps 3 --batch-size 16 --output {tmp_path}"
    )
    assert main(arguments.split()) != 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [result["architecture"] for result in results["results"]] == ["topk"]


def test_without_matplotlib_the_results_are_written(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = f"synth --architectures topk --l0 2 --steps 2 --batch-size 8 --output {tmp_path}"
    assert main(arguments.split()) == 0
    assert "sae-lens[viz]" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--architectures nonsense", "the benchmark knows topk"),
        ("--l0 0", "must lie between 1 and d_sae=128"),
        ("--mean-l0 1000", "can be active on average"),
        ("--d-sae 0", "d_sae=0"),
        ("--d-sae 129 --architectures topk topk_cross_layer_transcoder", "multiple of the number"),
        ("--zipf -1", "zipf is -1.0"),
        ("--steps 0", "n_steps is 0"),
        ("--batch-size 0", "batch_size is 0"),
        ("--lr nan", "lr is nan"),
        ("--n-features 20 --pairs 8 --children 8", "need 32 features; there are 20"),
    ],
)
def test_bad_calls_end_with_a_reason(arguments: str, message: str, capsys: Any):
    assert main(["synth", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_few_features_are_enough() -> None:
    arguments = "synth --architectures topk --l0 2 --n-features 8 --mean-l0 1 --steps 2 --d-in 4"
    assert main([*arguments.split(), "--batch-size", "8"]) == 0


def test_the_picture_has_a_panel_for_each_kind_and_every_curve() -> None:
    names = ("topk", "standard", "topk_crosscoder", "crosscoder")
    found = Recovery(0.5, 1.0, 0.0, 0.5, 0.5, 3.0, 0.9)
    results = [BenchmarkResult(name, 3.0, found) for name in names]
    picture = recovery_svg(results, 6.0)
    assert picture == recovery_svg(results, 6.0)
    axes = [e for e in ElementTree.fromstring(picture).iter() if "axes_" in e.get("id", "")]
    assert len(axes) == 2
    assert all(f">{text}</text>" in picture for text in ("SAEs", "Crosscoders", "topk", "relu"))
    ElementTree.fromstring(recovery_svg([], 6.0))
