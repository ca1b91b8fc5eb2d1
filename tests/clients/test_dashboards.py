"""What SAEDashboard does with an SAE: loading, masking features, tokens, and the page's numbers."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_lens import SAE, ActivationsStore, HookedSAETransformer, SkipTranscoder, Transcoder
from sae_lens.config import DTYPE_MAP
from sae_lens.constants import EMBEDDED_MODEL_NAME
from sae_lens.saes.topk_sae import TopK
from sae_lens.saes.transcoder import TranscoderConfig
from tests.clients.users import (
    D_SAE,
    HOOK,
    KINDS,
    converter_of,
    only_features,
    saved,
    users_sae,
)
from tests.helpers import randomize

pytestmark = pytest.mark.filterwarnings("ignore:Dataset is not tokenized")

FEATURES = [3, 0, 17]
CONTEXT = 16


def test_names_are_where_it_imports_them():
    assert issubclass(HookedSAETransformer, HookedTransformer)
    assert {"float32", "float16", "bfloat16"} <= set(DTYPE_MAP)
    assert SAE[Any] is not None  # evaluated in annotations when its modules are imported
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")
    by_name = loaders.NAMED_PRETRAINED_SAE_LOADERS
    assert callable(by_name["gemma_2"])
    assert callable(loaders.dictionary_learning_sae_huggingface_loader_1)
    assert "dictionary_learning_1" in by_name


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_some_features_leaves_the_sae_as_it_was(kind: str, d_in: int):
    sae = users_sae(kind, d_in)
    acts = torch.randn(3, 7, d_in)
    before = sae.encode(acts).detach()
    assert isinstance(sae.activation_fn, TopK) == (kind == "topk")
    with torch.inference_mode():
        if isinstance(sae.activation_fn, TopK):
            chosen = sae.encode(acts)[:, :, FEATURES]
        else:
            with only_features(sae, FEATURES):
                chosen = sae.encode(acts).to(DTYPE_MAP[sae.cfg.dtype])
        after = sae.encode(acts)
    assert torch.equal(after, before)
    torch.testing.assert_close(chosen, before[..., FEATURES])
    assert sae.W_enc.shape == (d_in, D_SAE)
    assert json.dumps(sae.cfg.to_dict())


@pytest.mark.parametrize("kind", [*KINDS, "topk rescaled"])
def test_decoder_norms_are_folded_twice(kind: str, d_in: int):
    kind, *rescaled = kind.split()
    options: dict[str, Any] = {"rescale_acts_by_decoder_norm": True} if rescaled else {}
    sae = users_sae(kind, d_in, **options)
    x = torch.randn(5, d_in)
    expected = copy.deepcopy(sae)(x).detach()
    with torch.inference_mode():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sae.fold_W_dec_norm()
                sae.fold_W_dec_norm()
        except NotImplementedError:
            assert kind == "topk"
            return
        if kind != "topk" or rescaled:  # plain topk may select other features afterwards
            torch.testing.assert_close(sae(x), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_local_folder_in_the_steps_of_its_runner(
    kind: str, dtype: str | None, d_in: int, model: Any, text_path: str, tmp_path: Path
):
    folder = saved(users_sae(kind, d_in), tmp_path)
    sae: Any = SAE.load_from_pretrained(path=str(folder), device="cpu", dtype=dtype)
    assert isinstance(sae, SAE)
    run_its_steps(sae, model, text_path)
    assert sae.W_enc.dtype == DTYPE_MAP[dtype or "float32"]


def test_a_released_sae_in_the_steps_of_its_runner(
    d_in: int, model: Any, text_path: str, tmp_path: Path
):
    saved(users_sae("jumprelu", d_in), tmp_path / "some" / "folder")
    sae = SAE.from_pretrained(
        release="owner/repo",
        sae_id="some/folder",
        device="cpu",
        converter=converter_of(tmp_path),
    )
    with pytest.warns(DeprecationWarning, match="used as the SAE"):
        run_its_steps(sae, model, text_path)
    # what it writes and deletes reaches the SAE, not the tuple
    sae.note = "kept"
    assert sae.sae.note == "kept"
    del sae.note
    assert not hasattr(sae.sae, "note")
    assert sae.sae.cfg.context_size == CONTEXT


def run_its_steps(sae: Any, model: Any, text_path: str) -> None:
    """`NeuronpediaRunner.__init__`, its tokens, and one batch of features of its page."""
    if not hasattr(sae.cfg, "metadata"):
        raise AssertionError("it would assign an item of cfg then")
    sae.cfg.metadata["prepend_bos"] = True
    dtype_key = sae.cfg.dtype
    sae.to("cpu")
    sae.cfg.device = "cpu"
    as_json = sae.cfg.to_dict()
    json.dumps(as_json, indent=2)
    assert as_json.get("model_from_pretrained_kwargs", {}) == {}
    sae.cfg.dataset_path = text_path
    sae.cfg.context_size = CONTEXT
    sae.fold_W_dec_norm() if not isinstance(sae.activation_fn, TopK) else None
    assert sae.cfg.model_name == EMBEDDED_MODEL_NAME
    assert sae.cfg.hook_layer == 1
    assert hasattr(sae.cfg.metadata, "hook_name")
    hook_name = sae.cfg.metadata.hook_name
    assert hook_name == HOOK
    sae.cfg.metadata.context_size = CONTEXT
    store = ActivationsStore.from_sae(
        model=model,
        sae=sae,
        dataset=text_path,
        streaming=True,
        context_size=CONTEXT,
        store_batch_size_prompts=8,
        n_batches_in_buffer=16,
        disable_concat_sequences=True,
        device="cpu",
    )
    assert store.store_batch_size_prompts == 8
    tokens = torch.cat([store.get_batch_tokens() for _ in range(3)])
    assert tokens.shape == (24, CONTEXT)
    assert (tokens[:, 0] == model.tokenizer.bos_token_id).all()
    # one document per row: no separator inside, and no two rows from one document
    assert not (tokens[:, 1:] == model.tokenizer.bos_token_id).any()
    assert len({tuple(row) for row in tokens.tolist()}) == 24
    with torch.inference_mode():
        if sae.hook_z_reshaping_mode:
            sae.turn_off_forward_pass_hook_z_reshaping()
        _, cache = model.run_with_cache(tokens[:2], names_filter=hook_name)
        acts = cache[hook_name].to(sae.device)
        if not isinstance(sae.activation_fn, TopK):
            with only_features(sae, FEATURES):
                features = sae.encode(acts).to(DTYPE_MAP[dtype_key])
            assert features.shape == (2, CONTEXT, len(FEATURES))
        assert sae.encode(acts).shape == (2, CONTEXT, sae.cfg.d_sae)
        assert sae.W_dec[FEATURES].shape == (len(FEATURES), sae.cfg.d_in)


def test_metadata_as_it_is_read_without_a_hook_layer(d_in: int):
    cfg = users_sae("standard", d_in).cfg
    assert "model_name" in cfg.metadata
    assert cfg.metadata["model_name"] == EMBEDDED_MODEL_NAME
    assert cfg.metadata.get("hook_name", "") == HOOK
    assert "nothing" not in cfg.metadata
    assert cfg.metadata.get("nothing", "default") == "default"
    assert hasattr(cfg.metadata, "nothing")
    assert cfg.metadata.nothing is None
    assert copy.copy(cfg.metadata).hook_name == HOOK


def test_attribution_through_a_head_axis(model: Any):
    width = model.cfg.n_heads * model.cfg.d_head
    sae = users_sae("standard", width, hook_name="blocks.1.attn.hook_z")
    assert "hook_z" in sae.cfg.hook_name  # 6.x has the name in the metadata alone
    sae.turn_off_forward_pass_hook_z_reshaping()
    tokens = model.to_tokens("import os")
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens)
        flat = cache["blocks.1.attn.hook_z"].flatten(-2)
        assert sae.encode(flat).shape == (*tokens.shape, D_SAE)
        heads = sae.W_dec[0].reshape(model.cfg.n_heads, model.cfg.d_head)
        assert heads.norm(dim=1).shape == (model.cfg.n_heads,)


def test_a_set_of_vectors_asks_a_store_for_tokens(d_in: int, model: Any, text_path: str):
    store = ActivationsStore(
        model=model,
        dataset=text_path,
        streaming=True,
        hook_name=HOOK,
        hook_layer=1,
        hook_head_index=None,
        context_size=32,
        d_in=d_in,
        n_batches_in_buffer=16,
        total_training_tokens=10**9,
        store_batch_size_prompts=8,
        train_batch_size_tokens=4096,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
    store.context_size = CONTEXT
    assert store.get_batch_tokens().shape == (8, CONTEXT)


@pytest.mark.parametrize("loader", [Transcoder, SkipTranscoder])
def test_transcoders_are_loaded_by_their_own_classes(loader: Any, d_in: int, tmp_path: Path):
    config = loader._config_class()
    assert issubclass(config, TranscoderConfig)
    made = loader(config(d_in=d_in, d_out=d_in, d_sae=D_SAE))
    randomize(made)
    saved(made, tmp_path / "mlp")
    options = {} if loader is SkipTranscoder else {"converter": converter_of(tmp_path)}
    if loader is SkipTranscoder:
        sae = loader.load_from_disk(tmp_path / "mlp", device="cpu", **options)
    else:
        sae = loader.from_pretrained(release="o/r", sae_id="mlp", device="cpu", **options)[0]
    assert isinstance(sae, loader)
    x = torch.randn(2, 3, d_in)
    with torch.inference_mode():
        torch.testing.assert_close(sae(x), made(x))


def test_a_nested_file_of_another_version(d_in: int, tmp_path: Path):
    made = users_sae("jumprelu", d_in)
    saved(made, tmp_path)
    (tmp_path / "cfg.json").write_text(
        json.dumps(
            {
                "architecture": "jumprelu",
                "d_in": d_in,
                "d_sae": D_SAE,
                "dtype": "float32",
                "device": "cpu",
                "apply_b_dec_to_input": True,
                "normalize_activations": "none",
                "reshape_activations": "none",
                "metadata": {
                    "sae_lens_version": "6.54.12",
                    "model_name": EMBEDDED_MODEL_NAME,
                    "hook_name": HOOK,
                    "prepend_bos": True,
                    "context_size": 128,
                },
            }
        )
    )
    sae: Any = SAE.load_from_pretrained(path=tmp_path, device="cpu", dtype=None)
    x = torch.randn(4, d_in)
    assert torch.equal(sae.encode(x), made.encode(x))
    assert (sae.cfg.hook_name, sae.cfg.hook_layer, sae.cfg.context_size) == (HOOK, 1, 128)
    # and what is written says its version, or 6.x would take the file for an older one
    again = json.loads((saved(sae, tmp_path / "again") / "cfg.json").read_text())
    assert int(again["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert again["reshape_activations"] == "none"
    assert again["metadata"]["hook_name"] == HOOK
