from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens.training.random_states import leaving_random_state, random_state, set_random_state
from sae_lens.training.resume_files import (
    DamagedCheckpointError,
    is_plain_name,
    pack_state,
    read_resume_files,
    unpack_state,
    write_resume_files,
)

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STATES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
)


@given(STATES)
def test_plain_states_come_back_exactly(state: Any) -> None:
    plain, tensors = pack_state(state)
    assert tensors == {}
    assert unpack_state(json.loads(json.dumps(plain)), {}) == state


def test_tensors_keys_and_numbers_keep_their_kind(tmp_path: Path) -> None:
    state = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "betas": (0.9, 0.999)},
        "best": -math.inf, "bad": math.nan, "nothing": None, "!tensor": [1],
        "half": torch.randn(3, 2).to(torch.bfloat16), "empty": torch.empty(0, 4),
    }  # fmt: skip
    write_resume_files(tmp_path, state, {"lr": 1e-3, "folder": tmp_path}, 64)
    found = read_resume_files(tmp_path)
    assert found.n_training_tokens == 64
    assert found.config == {"lr": 1e-3, "folder": str(tmp_path)}
    again = found.state
    assert again["optimizer"]["state"][0]["step"] == 3
    assert again["optimizer"]["betas"] == (0.9, 0.999)
    assert again["best"] == -math.inf and math.isnan(again["bad"]) and again["nothing"] is None
    assert again["!tensor"] == [1]
    assert torch.equal(again["half"], state["half"]) and again["half"].dtype is torch.bfloat16
    assert again["empty"].shape == (0, 4)


def test_what_is_neither_tensor_nor_plain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a\.b\.0 is a Path|a\.b\.0 is a PosixPath"):
        pack_state({"a": {"b": [tmp_path]}})


@pytest.mark.parametrize(
    ("index", "message"),
    [("[]", "not the description"), ("{", "not JSON"), ("{}", "not the description")],
)
def test_an_index_of_another_form_is_damaged(index: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="from_pretrained_path"):
        read_resume_files(tmp_path)
    write_resume_files(tmp_path, {}, {}, 0)
    path = tmp_path / "resume_state.json"
    good = json.loads(path.read_text())
    path.write_text(index)
    with pytest.raises(DamagedCheckpointError, match=message):
        read_resume_files(tmp_path)
    path.write_text(json.dumps({**good, "format": 99}))
    with pytest.raises(DamagedCheckpointError, match="format 99"):
        read_resume_files(tmp_path)


def test_names() -> None:
    assert all(is_plain_name(name) for name in ("1024", "final_3", "a b", "..x"))
    assert not any(is_plain_name(name) for name in ("", ".", "..", "a/b", "a\\b", "C:", "\0", 3))


def test_random_states_are_brought_back() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    np.random.randn()  # the second of a pair is kept for the next call
    before = random_state()
    first = draw()
    set_random_state(before)
    assert draw() == first
    set_random_state(before)
    with leaving_random_state():
        draw()
    assert draw() == first
