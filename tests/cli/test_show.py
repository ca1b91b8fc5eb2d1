"""`sae-lens show`: facts, tensors, sparsity and checks of saved SAEs, and of broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lens.cli.main import main
from sae_lens.loading.describe import describe_folder
from sae_lens.saes import SAE, CrossLayerTranscoderConfig, TranscoderConfig
from tests.helpers import GOLDENS

FLAT = GOLDENS / "v5" / "disk5-topk"
NESTED = GOLDENS / "v6" / "disk6-jumprelu-none"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of our own that a test may break."""
    copy = tmp_path / "sae"
    shutil.copytree(FLAT, copy)
    return copy


def show(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main(["show", str(folder), "--json"])
    return json.loads(capsys.readouterr().out)


def failed_checks(shown: dict[str, Any]) -> dict[str, str]:
    return {c["question"]: c["detail"] for c in shown["checks"] if not c["passed"]}


def test_text_of_a_flat_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(FLAT)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"SAE in {FLAT}"
    for line in (
        "architecture topk",
        "its arguments k=5",
        "features (d_sae) 48",
        "hook blocks.1.hook_resid_pre",
        "model toy",
        "dtype float32",
        "W_dec 48x16 F32",
        "b_enc 48 F32",
        "features that never fired 0 of 48 (0.0%)",
        "ok loads TopKSAE",
        "ok forward pass finite",
    ):
        assert line in lines


def test_hooks_that_are_read_and_written_and_filters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = ["blocks.0.hook_mlp_in", "blocks.1.hook_mlp_in"]
    outs = ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]
    size: dict[str, Any] = {"d_in": 4, "d_sae": 6}
    saes: dict[str, Any] = {
        "hook": TranscoderConfig(
            **size, d_out=3, metadata={"hook_name": hooks[0], "hook_name_out": outs[0]}
        ),
        "hooks": CrossLayerTranscoderConfig(**size, hook_names=hooks, hook_names_out=outs),
    }
    for label, config in saes.items():
        config.extra_metadata.update(norm_filter_multiple=7.5, exclude_special_tokens=[0, 1])
        SAE(config).save_model(tmp_path / label)
        assert main(["show", str(tmp_path / label)]) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        n = 1 if label == "hook" else 2
        assert f"{label} {', '.join(hooks[:n])}" in lines
        assert f"writes to {', '.join(outs[:n])}" in lines
        assert "leaves out norms above the median times 7.5" in lines
        assert "leaves out special tokens 0, 1" in lines
        assert ("output width (d_out) 3" in lines) is (n == 1)


def test_json_of_a_nested_folder(capsys: pytest.CaptureFixture[str]) -> None:
    shown = show(NESTED, capsys)
    assert shown["config"]["hook_name"] == "blocks.1.hook_resid_pre"
    assert shown["sparsity"] is None
    assert {t["name"]: t["shape"] for t in shown["tensors"]}["threshold"] == [48]
    assert not failed_checks(shown)


def test_sparsity_is_summed_up(folder: Path) -> None:
    density = torch.full((48,), 0.25)
    density[:12], density[12:20] = 0.0, 1e-6
    save_file({"sparsity": torch.log10(density + 1e-10)}, folder / "sparsity.safetensors")
    facts = describe_folder(folder).sparsity
    assert facts is not None
    assert (facts.features, facts.never_fired, facts.below_1e_5) == (48, 12, 20)
    assert facts.expected_l0 == pytest.approx(28 * 0.25 + 8 * 1e-6)
    assert facts.median_log10_density == pytest.approx(-0.602, abs=1e-3)


def test_a_folder_of_folders_names_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(folder.parent)]) == 1
    error = capsys.readouterr().err
    assert "no SAE folder itself" in error
    assert str(folder) in error


def test_weights_that_are_not_finite_fail_a_check(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["b_enc"][3] = float("nan")
    save_file(tensors, folder / "sae_weights.safetensors")
    assert main(["show", str(folder)]) == 1
    assert "FAILED  all weights finite" in capsys.readouterr().out


def test_a_sparsity_of_another_width_fails_a_check(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"sparsity": torch.zeros(47)}, folder / "sparsity.safetensors")
    assert failed_checks(show(folder, capsys)) == {
        "sparsity has one value per feature": "47 values"
    }


def test_tensors_that_disagree_with_the_config_fail_to_load(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, "d_sae": 64}))
    failed = failed_checks(show(folder, capsys))
    assert list(failed) == ["loads"]
    assert "48" in failed["loads"]
    assert "64" in failed["loads"]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("cfg.json", b"{", "not valid JSON"),
        ("cfg.json", b"[1, 2]", "JSON list; an object is needed"),
        ("sae_weights.safetensors", b"nonsense", "truncated or of another format"),
        ("sae_weights.safetensors", None, "is missing"),
        ("sparsity.safetensors", b"nonsense", "truncated or of another format"),
    ],
)
def test_files_that_cannot_be_read(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: bytes | None,
    words: str,
) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert main(["show", str(folder)]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert file in error
    assert words in error


def test_a_sparsity_file_without_its_tensor(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"density": torch.zeros(48)}, folder / "sparsity.safetensors")
    assert main(["show", str(folder)]) == 1
    assert "['density']; one non-empty tensor named 'sparsity'" in capsys.readouterr().err
