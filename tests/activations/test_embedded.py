"""The language model and the text that come with the package."""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_lens.activations.embedded import (
    EMBEDDED_FOLDER,
    load_embedded_model,
    load_embedded_text,
    load_embedded_tokenizer,
)
from sae_lens.constants import EMBEDDED_MODEL_NAME
from sae_lens.errors import InvalidArgumentError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_embedded_model.py"


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return load_embedded_model()


@pytest.fixture(scope="module")
def held_out_tokens(model: HookedTransformer) -> torch.Tensor:
    text = load_embedded_text("heldout")["text"][0]
    return model.to_tokens(text, truncate=False)[:, : 4 * 128].reshape(4, 128)


def test_nothing_reaches_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = load_embedded_model()
    assert len(load_embedded_text("heldout")) > 0
    assert model.to_str_tokens("import os")[0] == model.tokenizer.bos_token


def test_it_is_an_instance_of_the_class_asked_for() -> None:
    class Hooked(HookedTransformer):
        pass

    assert type(load_embedded_model(Hooked)) is Hooked
    assert load_embedded_model(Hooked).cfg.model_name == EMBEDDED_MODEL_NAME


def test_it_predicts_held_out_text(model: HookedTransformer, held_out_tokens: torch.Tensor) -> None:
    with torch.no_grad():
        loss = model(held_out_tokens, return_type="loss").item()
        order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
        shuffled = model(held_out_tokens[:, order], return_type="loss").item()
    assert loss < 4.0  # a uniform guess over the vocabulary costs 8.3 nats
    assert shuffled > loss + 2.0


def test_weights_are_finite_and_the_unembedding_is_the_embedding(model: HookedTransformer) -> None:
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.equal(model.W_U, model.W_E.T)
    assert model.cfg.dtype == torch.float32


def test_folding_the_norms_keeps_the_predictions(
    model: HookedTransformer, held_out_tokens: torch.Tensor
) -> None:
    folded = load_embedded_model(fold_ln=True, center_unembed=True)
    with torch.no_grad():
        expected = model(held_out_tokens).log_softmax(-1)
        actual = folded(held_out_tokens).log_softmax(-1)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


def test_another_dtype() -> None:
    model = load_embedded_model(dtype="bfloat16")
    assert model.W_E.dtype == torch.bfloat16
    assert model(torch.tensor([[0, 5, 9]])).dtype == torch.bfloat16


def test_tokenizer_keeps_every_character_and_marks_the_beginning() -> None:
    tokenizer = load_embedded_tokenizer()
    text = "def naïve(x):\n\treturn {x: '→ 4.5'}  # done\n"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_transformer_lens_counts_one_beginning(model: HookedTransformer) -> None:
    with_bos, without = model.to_tokens("x = 1"), model.to_tokens("x = 1", prepend_bos=False)
    assert with_bos[0, 0] == model.tokenizer.bos_token_id
    assert torch.equal(with_bos[:, 1:], without)


def test_the_parts_of_the_text_share_no_file() -> None:
    train, held_out = load_embedded_text("train"), load_embedded_text("heldout")
    assert "text" in train.column_names
    assert not set(train["source"]) & set(held_out["source"])
    assert sum(map(len, train["text"])) > 5_000_000
    assert sum(map(len, held_out["text"])) > 200_000


def test_another_split_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'validation'.*'train' and 'heldout'"):
        load_embedded_text("validation")


def test_an_argument_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="takes no argument revision"):
        load_embedded_model(revision="main")


def test_the_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.iterdir()) < 8_000_000


@pytest.mark.skipif(not SCRIPT.exists(), reason="the training script is not in this checkout")
def test_the_training_script_and_the_loader_mean_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("train_embedded_model", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_embedded_model", script)
    spec.loader.exec_module(script)

    torch.manual_seed(0)
    trained = script.TinyTransformer(script.Shape(n_layers=2, d_model=32, n_heads=2, d_mlp=48))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half())
    options = type("Options", (), {"batch": 1, "seed": 0})
    script.export(trained, tmp_path, 0, options, [])
    (tmp_path / "tokenizer.json").write_bytes((EMBEDDED_FOLDER / "tokenizer.json").read_bytes())
    monkeypatch.setattr("sae_lens.activations.embedded.EMBEDDED_FOLDER", tmp_path)

    tokens = torch.randint(0, 4096, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(
            load_embedded_model()(tokens), trained(tokens), atol=1e-4, rtol=1e-4
        )
