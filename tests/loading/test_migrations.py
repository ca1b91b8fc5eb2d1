"""Configs and folders of every age come out as the same SAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_lens.errors import SAELoadError
from sae_lens.loading.inference_form import inference_form
from sae_lens.loading.migrations import (
    flatten_config,
    handle_config_defaulting,
    rename_legacy_keys,
)
from sae_lens.saes import SAE, JumpReLUSAE, SAEConfig, TopKSAE, TrainingSAE
from tests.loading.synthetic import D, M, keep_largest, normal, weights

HOOK = "blocks.3.hook_resid_pre"

# What each age wrote for one and the same SAE. The first is what they all must become.
FLAT_5: dict[str, Any] = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": M,
    "dtype": "float32",
    "device": "cpu",
    "model_name": "gpt2-small",
    "hook_name": HOOK,
    "hook_layer": 3,
    "hook_head_index": None,
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "sae_lens_training_version": None,
    "prepend_bos": True,
    "dataset_path": "some/text",
    "dataset_trust_remote_code": True,
    "context_size": 128,
    "normalize_activations": "none",
    "neuronpedia_id": None,
    "model_from_pretrained_kwargs": {},
    "seqpos_slice": [None],
}
RUNNER_2: dict[str, Any] = {
    "model_name": "gpt2-small",
    "hook_point": HOOK,
    "hook_point_layer": 3,
    "hook_point_head_index": None,
    "dataset_path": "some/text",
    "is_dataset_tokenized": True,
    "context_size": 128,
    "d_in": D,
    "d_sae": M,
    "expansion_factor": 2.5,
    "dtype": "torch.float32",
    "device": "cpu",
    "prepend_bos": True,
    "l1_coefficient": 1e-3,
    "total_training_tokens": 1000,
}
RUNNER_3 = {**RUNNER_2, "activation_fn": "relu", "normalize_activations": False}
FLAT_4 = {
    name: value
    for name, value in FLAT_5.items()
    if name not in ("seqpos_slice", "neuronpedia_id", "model_from_pretrained_kwargs")
}
NESTED_6: dict[str, Any] = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": M,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "sae_lens_version": "6.20.0",
        "sae_lens_training_version": None,
        "model_name": "gpt2-small",
        "hook_name": HOOK,
        "context_size": 128,
        "dataset_path": "some/text",
        "prepend_bos": True,
    },
}
AGES = {
    "2.x": RUNNER_2,
    "3.x": RUNNER_3,
    "4.x": FLAT_4,
    "5.x": FLAT_5,
    "6.x": NESTED_6,
    "union": {**FLAT_5, **NESTED_6},
}


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def standard_weights() -> dict[str, Tensor]:
    tensors = weights()
    del tensors["threshold"]
    return tensors


@pytest.mark.parametrize("age", AGES)
def test_every_age_is_the_same_sae(age: str, tmp_path: Path) -> None:
    config = AGES[age]
    before = json.dumps(config, sort_keys=True)
    tensors = standard_weights()
    if age == "2.x":
        tensors["scaling_factor"] = torch.ones(M)
    sae = SAE.load_from_disk(write_folder(tmp_path / "sae", config, tensors))
    expected = SAEConfig.from_dict(FLAT_5).to_dict()
    assert sae.cfg.to_dict() | {"dtype": "float32"} == expected
    assert json.dumps(config, sort_keys=True) == before
    x = normal(5, D, seed=8)
    w = standard_weights()
    with torch.no_grad():
        features = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        torch.testing.assert_close(sae(x), features @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("age", AGES)
def test_flattening_twice_changes_nothing(age: str) -> None:
    once = flatten_config(AGES[age])
    assert flatten_config(once) == once


def test_names() -> None:
    renamed = rename_legacy_keys({"hook_point": "a", "activation_fn": "relu", "other": 1})
    assert renamed == {"hook_name": "a", "activation_fn_str": "relu", "other": 1}
    assert rename_legacy_keys({"hook_name": "new", "hook_point": "old"}) == {"hook_name": "new"}
    assert rename_legacy_keys({"hook_point": "old", "hook_name": "new"}) == {"hook_name": "new"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (True, "expected_average_only_in"),
        (False, "none"),
        (None, "none"),
        ("layer_norm", "layer_norm"),
    ],
)
def test_normalisation(given: Any, meant: str) -> None:
    assert handle_config_defaulting({"normalize_activations": given})["normalize_activations"] == (
        meant
    )
    assert flatten_config({"normalize_activations": given})["normalize_activations"] == meant


def test_defaults_fill_only_what_is_missing() -> None:
    given: dict[str, Any] = {}
    assert handle_config_defaulting(given) is given
    assert given == {
        "prepend_bos": True,
        "dataset_trust_remote_code": True,
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "activation_fn_str": "relu",
        "architecture": "standard",
        "neuronpedia_id": None,
        "normalize_activations": "none",
        "device": "cpu",
    }
    kept = {"prepend_bos": False, "device": "cuda:1", "activation_fn": "tanh-relu"}
    filled = handle_config_defaulting(dict(kept))
    assert filled["prepend_bos"] is False
    assert filled["device"] == "cuda:1"
    assert filled["activation_fn_str"] == "tanh-relu"


def test_what_nobody_said_about_remote_code_is_not_turned_into_yes(tmp_path: Path) -> None:
    config = {**NESTED_6, "dataset_trust_remote_code": None}
    sae = SAE.load_from_disk(write_folder(tmp_path / "sae", config, standard_weights()))
    assert sae.cfg.dataset_trust_remote_code is None
    sae.save_model(tmp_path / "again")
    assert SAE.load_from_disk(tmp_path / "again").cfg.to_dict() == sae.cfg.to_dict()


TOPK_SPELLINGS: dict[str, dict[str, Any]] = {
    "5.x": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
    "5.x, by architecture": {
        "architecture": "topk",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
    },
    "runner": {"activation_fn": "topk", "activation_fn_kwargs": {"k": 4}},
    "6.x, flat": {"architecture": "topk", "k": 4},
    "architecture with arguments": {"architecture": "topk", "activation_fn_kwargs": {"k": 4}},
    "architecture and relu": {"architecture": "topk", "k": 4, "activation_fn_str": "relu"},
}


@pytest.mark.parametrize("spelling", TOPK_SPELLINGS)
def test_every_spelling_of_topk(spelling: str, tmp_path: Path) -> None:
    base = {k: v for k, v in FLAT_5.items() if k not in ("architecture",)}
    del base["activation_fn_str"], base["activation_fn_kwargs"]
    config = {**base, **TOPK_SPELLINGS[spelling]}
    folder = write_folder(tmp_path / "sae", config, standard_weights())
    sae = SAE.load_from_disk(folder)
    x = normal(5, D, seed=8)
    w = standard_weights()
    expected = keep_largest((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 4)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), expected)
        sae.save_model(tmp_path / "again")
        again = SAE.load_from_disk(tmp_path / "again")
        torch.testing.assert_close(again.encode(x), expected)
    written = json.loads((tmp_path / "again" / "cfg.json").read_text())
    # Readers of the nested format go by the architecture and `k`, older ones by the function.
    assert (written["architecture"], written["k"]) == ("topk", 4)
    assert written["activation_fn_str"] == "topk"
    assert isinstance(again, TopKSAE)


def test_topk_without_k_is_refused(tmp_path: Path) -> None:
    config = {**FLAT_5, "activation_fn_str": "topk"}
    folder = write_folder(tmp_path / "sae", config, standard_weights())
    with pytest.raises(ValueError, match="activation_fn_kwargs.k must be provided"):
        SAE.load_from_disk(folder)


def test_reshaping_follows_the_file_and_in_old_files_the_hook() -> None:
    assert SAEConfig.from_dict({**FLAT_5, "hook_name": "blocks.3.attn.hook_z"}).reshape_activations
    nested = {**NESTED_6, "metadata": {**NESTED_6["metadata"], "hook_name": "blocks.3.attn.hook_z"}}
    assert SAEConfig.from_dict(nested).reshape_activations == "none"
    nested["reshape_activations"] = "hook_z"
    assert SAEConfig.from_dict(nested).reshape_activations == "hook_z"


def test_facts_that_no_field_holds_stay_in_the_metadata() -> None:
    metadata = {**NESTED_6["metadata"], "hf_hook_name": "model.layers.3", "l0": 41.5}
    config = SAEConfig.from_dict({**NESTED_6, "metadata": metadata})
    assert config.metadata.hf_hook_name == "model.layers.3"
    assert config.metadata["l0"] == 41.5
    assert config.to_file_dict()["metadata"]["hf_hook_name"] == "model.layers.3"


# -- what was trained with a selection over the batch ----------------------------------------------


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [True, False])
def test_batch_selecting_checkpoints_load_as_jumprelu(
    architecture: str, rescale: bool, tmp_path: Path
) -> None:
    w = standard_weights()
    config = {
        **NESTED_6,
        "architecture": architecture,
        "k": 4,
        "rescale_acts_by_decoder_norm": rescale,
        "topk_threshold_lr": 0.01,
        "matryoshka_widths": [10, M],
    }
    config["metadata"] = {**NESTED_6["metadata"], "training_architecture": architecture}
    threshold = torch.tensor(0.8, dtype=torch.float64)
    folder = write_folder(tmp_path / "sae", config, {**w, "topk_threshold": threshold})
    sae = SAE.load_from_disk(folder)
    assert isinstance(sae, JumpReLUSAE)
    x = normal(6, D, seed=8)
    norms = w["W_dec"].norm(dim=-1) if rescale else torch.ones(M)
    hidden = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    features = torch.relu(hidden) * (hidden > 0.8)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), features, atol=1e-5, rtol=1e-4)
        recons = (features / norms) @ w["W_dec"] + w["b_dec"]
        torch.testing.assert_close(sae(x), recons, atol=1e-5, rtol=1e-4)


def test_a_batchtopk_checkpoint_goes_on_training_as_what_it_is(tmp_path: Path) -> None:
    config = {**NESTED_6, "architecture": "batchtopk", "k": 4}
    config["metadata"] = {**NESTED_6["metadata"], "training_architecture": "batchtopk"}
    threshold = torch.tensor(0.8, dtype=torch.float64)
    tensors = {**standard_weights(), "topk_threshold": threshold}
    sae = TrainingSAE.load_from_disk(write_folder(tmp_path / "sae", config, tensors))
    assert sae.cfg.architecture == "batchtopk"
    assert float(sae.state_dict()["topk_threshold"]) == pytest.approx(0.8)


def test_without_its_threshold_it_is_refused() -> None:
    with pytest.raises(SAELoadError, match="without its topk_threshold"):
        inference_form({"architecture": "batchtopk"}, {})
    given = ({"architecture": "standard"}, {"W_enc": torch.zeros(1)})
    assert inference_form(*given) == given
