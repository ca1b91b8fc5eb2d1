"""Folders that cannot be what they claim: the error names the file and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lens.errors import SAELoadError
from sae_lens.saes import SAE
from tests.helpers import make_sae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_sae().save_model(tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    for name, value in changes.items():
        config.pop(name) if value is None else config.update({name: value})
    (folder / "cfg.json").write_text(json.dumps(config))


def test_missing_files(folder: Path):
    with pytest.raises(FileNotFoundError, match="no SAE folder"):
        SAE.load_from_disk(folder / "nowhere")
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="sae_weights.safetensors"):
        SAE.load_from_disk(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"cfg\.json is missing"):
        SAE.load_from_disk(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated_weights(folder: Path, keep: int):
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(SAELoadError, match=r"sae_weights\.safetensors.*truncated"):
        SAE.load_from_disk(folder)


def test_a_pickle_is_not_read(folder: Path):
    torch.save({"W_enc": torch.zeros(1)}, folder / "sae_weights.safetensors")
    with pytest.raises(SAELoadError, match="another format"):
        SAE.load_from_disk(folder)


def test_config_that_is_no_json_object(folder: Path):
    for text in ("{", "", "[1]", '"sae"', "\x00"):
        (folder / "cfg.json").write_text(text)
        with pytest.raises(SAELoadError, match=r"cfg\.json"):
            SAE.load_from_disk(folder)


def test_config_that_lacks_keys(folder: Path):
    rewrite(folder, d_in=None)
    with pytest.raises(SAELoadError, match="incomplete.*d_in"):
        SAE.load_from_disk(folder)


def test_config_that_disagrees_with_the_tensors(folder: Path):
    rewrite(folder, d_sae=49)
    with pytest.raises(SAELoadError, match=r"W_enc has shape \[16, 48\] instead of \[16, 49\]"):
        SAE.load_from_disk(folder)
    rewrite(folder, d_sae=48, architecture="jumprelu")
    with pytest.raises(SAELoadError, match="threshold is missing"):
        SAE.load_from_disk(folder)
    rewrite(folder, architecture="standard", dtype="float7")
    with pytest.raises(SAELoadError, match="float7"):
        SAE.load_from_disk(folder)


def test_tensors_that_do_not_belong(folder: Path):
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({**tensors, "extra": torch.zeros(2)}, folder / "sae_weights.safetensors")
    with pytest.raises(SAELoadError, match="extra is not expected"):
        SAE.load_from_disk(folder)


def test_scaling_factor_of_old_files(folder: Path):
    tensors = load_file(folder / "sae_weights.safetensors")
    path = folder / "sae_weights.safetensors"
    save_file({**tensors, "scaling_factor": torch.ones(48)}, path)
    assert not SAE.load_from_disk(folder).cfg.finetuning_scaling_factor
    save_file({**tensors, "scaling_factor": torch.full((48,), 2.0)}, path)
    with pytest.raises(SAELoadError, match="scaling_factor other than ones"):
        SAE.load_from_disk(folder)
    rewrite(folder, finetuning_scaling_factor=True)
    assert (SAE.load_from_disk(folder).finetuning_scaling_factor == 2).all()
    # the name under which such SAEs are saved sets the flag by itself
    save_file({**tensors, "finetuning_scaling_factor": torch.full((48,), 2.0)}, path)
    rewrite(folder, finetuning_scaling_factor=False)
    assert (SAE.load_from_disk(folder).finetuning_scaling_factor == 2).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.float16", torch.float64])
def test_dtype_on_loading(folder: Path, dtype):
    sae = SAE.load_from_disk(folder, dtype=dtype)
    assert str(sae.dtype).endswith(str(dtype).removeprefix("torch."))
    assert sae(torch.randn(2, 16)).dtype == sae.dtype


def test_nothing_half_written_replaces_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = (folder / "sae_weights.safetensors").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("sae_lens.atomic_files.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        make_sae(seed=5).save_model(folder)
    assert (folder / "sae_weights.safetensors").read_bytes() == before
    assert not list(folder.glob(".*"))
