"""Configs: ages, forms, and the metadata view."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch

from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes import (
    SAE,
    GatedSAEConfig,
    JumpReLUTrainingSAEConfig,
    SAEConfig,
    SAEMetadata,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from tests.helpers import ARCHITECTURES, activations, assert_close, flat_config_dict, make_sae


def test_positional_construction_follows_the_published_order():
    cfg = SAEConfig(
        "standard", 4, 8, "relu", True, False, 16, "m", "blocks.1.hook_resid_pre", 1, None, True,
        "data", False, "none", "float32", "cpu", "5.2.0", {}, "id", {"a": 1}, (0, 4),
    )  # fmt: skip
    assert (cfg.neuronpedia_id, cfg.model_from_pretrained_kwargs, cfg.seqpos_slice) == (
        "id",
        {"a": 1},
        (0, 4),
    )


def test_mutable_defaults_are_fresh():
    one, two = (SAEConfig.from_dict(flat_config_dict()) for _ in range(2))
    one.model_from_pretrained_kwargs["x"] = 1
    one.metadata["mine"] = 1
    assert two.model_from_pretrained_kwargs == {}
    assert "mine" not in two.metadata


def test_legacy_names_are_renamed_and_new_ones_win():
    old = flat_config_dict()
    old["hook_point"] = old.pop("hook_name")
    old["hook_point_layer"] = old.pop("hook_layer")
    old["hook_point_head_index"] = old.pop("hook_head_index")
    old["activation_fn"] = old.pop("activation_fn_str")
    old["not_a_field"] = 1
    assert SAEConfig.from_dict(old) == SAEConfig.from_dict(flat_config_dict())
    for order in (1, -1):
        both = dict([("hook_point", "old"), ("hook_name", "new")][::order])
        rest = {k: v for k, v in flat_config_dict().items() if k != "hook_name"}
        assert SAEConfig.from_dict({**both, **rest}).hook_name == "new"


def test_values_of_other_types_are_brought_to_theirs():
    cfg = SAEConfig.from_dict(
        flat_config_dict(
            dtype=torch.float16,
            device=torch.device("cpu"),
            normalize_activations=True,
            seqpos_slice=[1, None],
        )
    )
    assert (cfg.dtype, cfg.device) == ("torch.float16", "cpu")
    assert cfg.normalize_activations == "expected_average_only_in"
    assert cfg.seqpos_slice == (1, None)
    assert TrainingSAEConfig.from_dict(flat_config_dict(seqpos_slice=5)).seqpos_slice == (5,)


def test_missing_fields_are_a_type_error():
    incomplete = flat_config_dict()
    del incomplete["d_in"]
    with pytest.raises(TypeError, match="d_in"):
        SAEConfig.from_dict(incomplete)


def test_training_fields_that_older_files_lack_have_the_defaults_of_runs():
    cfg = TrainingSAEConfig.from_dict(flat_config_dict())
    run = LanguageModelSAERunnerConfig(verbose=False)
    own = {f.name for f in fields(TrainingSAEConfig)} - {f.name for f in fields(SAEConfig)}
    assert len(own) == 13
    assert {name: getattr(cfg, name) for name in own} == {name: getattr(run, name) for name in own}
    assert (cfg.l1_coefficient, cfg.normalize_sae_decoder, cfg.jumprelu_bandwidth) == (
        1e-3, True, 1e-3,
    )  # fmt: skip


def test_architecture_is_a_string_that_may_be_called():
    cfg = SAEConfig.from_dict(flat_config_dict("gated"))
    assert cfg.architecture == "gated"
    assert cfg.architecture() == "gated"
    assert type(cfg.to_dict()["architecture"]) is str
    cfg.architecture = "topk"
    assert cfg.architecture() == "topk"
    assert pickle.loads(pickle.dumps(cfg)).architecture() == "topk"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dicts_round_trip(architecture: str):
    cfg = SAEConfig.from_dict(flat_config_dict(architecture))
    assert SAEConfig.from_dict(cfg.to_dict()) == cfg
    through_file = SAEConfig.from_dict(json.loads(json.dumps(cfg.to_file_dict())))
    assert through_file.to_dict() == cfg.to_dict()
    training = TrainingSAEConfig.from_dict(flat_config_dict(architecture, l1_coefficient=0.5))
    assert TrainingSAEConfig.from_dict(training.to_dict()) == training
    assert len(training.get_base_sae_cfg_dict()) == 19
    assert "neuronpedia_id" not in training.get_base_sae_cfg_dict()


def test_per_architecture_configs_need_two_numbers():
    for cfg in (
        StandardSAEConfig(d_in=4, d_sae=8),
        GatedSAEConfig(4, 8),
        TopKSAEConfig(d_in=4, d_sae=8, k=2),
        StandardTrainingSAEConfig(d_in=4, d_sae=8),
        JumpReLUTrainingSAEConfig(d_in=4, d_sae=8),
    ):
        assert isinstance(cfg, SAEConfig)
        assert (cfg.model_name, cfg.hook_name, cfg.context_size) == (None, "", None)
        assert cfg.normalize_activations == "none"
    assert isinstance(StandardTrainingSAEConfig(d_in=4, d_sae=8), TrainingSAEConfig)
    assert isinstance(SAE(StandardSAEConfig(d_in=4, d_sae=8)), StandardSAE)
    with pytest.raises(TypeError):
        StandardSAEConfig(d_in=4)  # type: ignore[call-arg]


def test_form_is_visible_and_chosen_by_the_dict():
    v5 = TrainingSAEConfig.from_dict(flat_config_dict("topk"))
    assert (type(v5), v5.form) == (TrainingSAEConfig, "v5")
    for says_so in (
        {**flat_config_dict("topk"), "metadata": {"training_architecture": "topk"}},
        {"architecture": "topk", "d_in": 4, "d_sae": 8, "k": 3},
    ):
        v6 = TrainingSAEConfig.from_dict(says_so)
        assert (type(v6), v6.form) == (TopKTrainingSAEConfig, "v6")
    assert v6.k == 3
    assert v6.activation_fn_kwargs == {"k": 3}
    assert (
        type(StandardTrainingSAEConfig.from_dict(flat_config_dict())) is StandardTrainingSAEConfig
    )
    assert TrainingSAE.from_dict(says_so).cfg.form == "v6"


def test_defaults_of_the_v6_form():
    topk = TopKTrainingSAEConfig(d_in=4, d_sae=200)
    assert (topk.k, topk.rescale_acts_by_decoder_norm, topk.aux_loss_coefficient) == (
        100,
        True,
        1.0,
    )
    jumprelu = JumpReLUTrainingSAEConfig(d_in=4, d_sae=8)
    assert (jumprelu.jumprelu_init_threshold, jumprelu.jumprelu_bandwidth) == (0.01, 0.05)
    assert StandardTrainingSAEConfig(d_in=4, d_sae=8).l1_coefficient == 1.0
    assert not TopKSAEConfig(d_in=4, d_sae=200).rescale_acts_by_decoder_norm


def test_metadata_is_one_value_behind_two_doors():
    cfg = TopKSAEConfig(
        d_in=4,
        d_sae=8,
        k=2,
        metadata=SAEMetadata(model_name="gpt2", hook_name="blocks.3.hook_z", mine=1),
    )
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == ("gpt2", "blocks.3.hook_z", 3)
    cfg.metadata.context_size = 64
    cfg.metadata["prepend_bos"] = False
    assert (cfg.context_size, cfg.prepend_bos) == (64, False)
    cfg.context_size = 32
    assert cfg.metadata.context_size == cfg.metadata["context_size"] == 32
    assert cfg.metadata.mine == 1
    cfg.metadata = {"mine": 2, "dataset_path": "there"}
    assert (cfg.metadata.mine, cfg.dataset_path) == (2, "there")
    del cfg.metadata.mine
    assert "mine" not in cfg.metadata
    assert replace(cfg, k=3).metadata.dataset_path == "there"


@pytest.mark.parametrize(
    "view", [SAEMetadata(known=1), TopKSAEConfig(4, 8, k=2, metadata={"known": 1}).metadata]
)
def test_metadata_answers_for_any_name(view: Any):
    assert hasattr(view, "anything")
    assert view.anything is None
    assert view["anything"] is None
    assert "anything" not in view
    assert "known" in view
    assert view.get("anything", 7) == 7
    assert view.get("known", 7) == 1
    view.hf_hook_name = "model.layers.0"
    assert view["hf_hook_name"] == "model.layers.0"
    for twin in (copy.copy(view), copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert twin == view
        twin.known = 5
        assert view.known == 1


def test_empty_metadata_and_assignments_of_unknown_names():
    assert len(SAEMetadata()) == 0
    cfg = make_sae("topk").cfg
    cfg.architecture_str = "topk"
    cfg.exclude_special_tokens = True
    cfg.metadata = cfg.metadata
    assert json.dumps(cfg.to_dict())
    assert asdict(cfg)["d_in"] == cfg.d_in


def test_nested_dicts_are_read():
    cfg = SAEConfig.from_dict(
        {
            "architecture": "topk",
            "d_in": 4,
            "d_sae": 8,
            "k": 2,
            "rescale_acts_by_decoder_norm": True,
            "dtype": "float32",
            "metadata": {"hook_name": "blocks.7.attn.hook_z", "sae_lens_version": "6.5.0", "x": 1},
            "reshape_activations": "none",
        }
    )
    assert isinstance(cfg, TopKSAEConfig)
    assert (cfg.hook_layer, cfg.k, cfg.activation_fn_kwargs) == (7, 2, {"k": 2})
    assert (cfg.model_name, cfg.dataset_path, cfg.metadata.x) == (None, None, 1)
    sae = SAE(cfg)
    assert isinstance(sae, TopKSAE)
    assert not sae.hook_z_reshaping_mode
    assert sae.rescales_acts
    assert SAEConfig.from_dict(cfg.to_dict()).to_dict() == cfg.to_dict()


def test_rescaling_is_the_decoder_norm_fold():
    sae = make_sae("topk")
    sae.W_dec.data.mul_(torch.rand(len(sae.W_dec), 1) * 3)
    folded = copy.deepcopy(sae)
    folded.fold_W_dec_norm()
    sae.cfg.rescale_acts_by_decoder_norm = True
    assert_close(sae.encode(activations()), folded.encode(activations()))
    assert_close(sae(activations()), folded(activations()))
