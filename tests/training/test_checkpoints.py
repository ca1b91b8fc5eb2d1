from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_lens.saes import SAE, TrainingSAE
from sae_lens.training import checkpoints
from sae_lens.training.checkpoints import (
    UnwritableFolderError,
    atomic_folder,
    checkpoint_thresholds,
    ensure_writable,
    write_checkpoint,
)
from tests.helpers import ARCHITECTURES, activations, make_training_sae


@pytest.mark.parametrize(
    ("total", "n", "want"),
    [(100, 2, [50]), (480, 3, [160, 320]), (100, 0, []), (10, 3, [3, 6, 9]), (2, 5, [1])],
)
def test_thresholds(total: int, n: int, want: list[int]) -> None:
    assert checkpoint_thresholds(total, n) == want


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "a"
    with atomic_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert sorted(p.name for p in target.parent.iterdir()) == ["a"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_failed_folder_leaves_what_was_there(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("new")
        raise RuntimeError
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_replaces_its_predecessor_but_no_foreign_files(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "x").write_text(content)
    assert (tmp_path / "a" / "x").read_text() == "new"
    (tmp_path / "a" / "notes").write_text("mine")
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("newest")
    assert (tmp_path / "a" / "x").read_text() == "newest"
    assert (tmp_path / "a" / "notes").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_unwritable_folder_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFolderError, match=r"file/checkpoints.*checkpoint_path"):
        ensure_writable(tmp_path / "file" / "checkpoints")
    with pytest.raises(ValueError):
        ensure_writable("/proc/nowhere")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_reads_as_the_sae_it_holds(architecture: str, tmp_path: Path) -> None:
    sae = make_training_sae(architecture, normalize_activations="expected_average_only_in")
    sae.fold_activation_norm_scaling_factor(2.0)
    # the run's config knows nothing of the fold, and spells some keys in its own way
    run_config = {
        "normalize_activations": "expected_average_only_in", "activation_fn": "relu",
        "lr": 1e-3, "sae_lens_version": "0.0.1", "finetuning_method": None, "sae": None,
    }  # fmt: skip
    written = write_checkpoint(tmp_path / "c", sae, torch.full((48,), -3.0), run_config)
    assert {path.name for path in written.values()} == {
        "sae_weights.safetensors", "cfg.json", "sparsity.safetensors",
    }  # fmt: skip
    config = json.loads(written["config"].read_text())
    assert config["normalize_activations"] == "none"
    assert config["lr"] == 1e-3
    assert config["sae_lens_version"] == config["metadata"]["sae_lens_version"] >= "6"
    assert "training_architecture" not in config["metadata"]
    assert load_file(written["sparsity"])["sparsity"].tolist() == [-3.0] * 48
    x = activations()
    sae.eval()
    for cls in (SAE, TrainingSAE):
        loaded = cls.load_from_disk(tmp_path / "c").eval()
        torch.testing.assert_close(loaded(x), sae(x))


def test_decoder_rows_are_normalised_in_the_file_only(tmp_path: Path) -> None:
    sae = make_training_sae()
    before = sae.W_dec.detach().clone()
    written = write_checkpoint(tmp_path / "c", sae, torch.zeros(48), {}, normalize_decoder=True)
    rows = load_file(written["weights"])["W_dec"]
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(48))
    assert torch.equal(sae.W_dec, before)


def test_the_optimizer_state_is_written_on_request(tmp_path: Path) -> None:
    sae = make_training_sae()
    optimizer = torch.optim.Adam(sae.parameters())
    sae(activations()).sum().backward()
    optimizer.step()
    written = write_checkpoint(tmp_path / "c", sae, torch.zeros(48), {}, optimizer=optimizer)
    tensors = load_file(written["optimizer"])
    assert torch.equal(tensors["W_dec.exp_avg"], optimizer.state[sae.W_dec]["exp_avg"])


def test_an_interrupted_write_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = make_training_sae()
    write_checkpoint(tmp_path / "c", sae, torch.zeros(48), {"lr": 1})

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_flush", dies)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "c", sae, torch.zeros(48), {"lr": 2})
    assert json.loads((tmp_path / "c" / "cfg.json").read_text())["lr"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
