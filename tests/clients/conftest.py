"""The packaged model and some of its text, as a dataset folder that is given by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sae_lens.activations.embedded import load_embedded_model, load_embedded_text


@pytest.fixture(scope="package")
def model() -> Any:
    from sae_lens import HookedSAETransformer

    return load_embedded_model(HookedSAETransformer)


@pytest.fixture(scope="package")
def d_in(model: Any) -> int:
    return model.cfg.d_model


@pytest.fixture(scope="package")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 40 texts; some have fewer tokens than a prompt."""
    folder = tmp_path_factory.mktemp("text")
    documents = load_embedded_text("heldout")["text"]
    pieces = [text[start : start + 400] for text in documents for start in range(0, 4000, 400)]
    rows = [text if i % 5 else text[:12] for i, text in enumerate(pieces[:40])]
    Path(folder, "train.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8"
    )
    return str(folder)
