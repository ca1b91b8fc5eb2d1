"""Folders that the original library wrote give its numbers here, before and after saving again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_lens.saes import SAE
from tests.helpers import GOLDENS, assert_close

FOLDERS = sorted(GOLDENS.glob("v*/disk*"))


def test_there_are_folders_of_both_generations() -> None:
    assert {path.name[:5] for path in FOLDERS} == {"disk5", "disk6"}
    assert len(FOLDERS) == 26


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@torch.no_grad()
def test_a_folder_of_the_original(folder: Path, tmp_path: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    sae = SAE.load_from_disk(folder).eval()
    assert_close(sae.encode(expected["in/x"]), expected["out/encode"])
    assert_close(sae(expected["in/x"]), expected["out/forward"])
    sae.save_model(tmp_path / "again")
    again = SAE.load_from_pretrained(str(tmp_path / "again")).eval()
    assert_close(again(expected["in/x"]), expected["out/forward"])
    assert type(again) is type(sae)
