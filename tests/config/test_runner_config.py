from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sae_lens.config as public
from sae_lens.config import (
    LanguageModelSAERunnerConfig,
    _default_cached_activations_path,
    _validate_seqpos,
    dict_field,
    json_dict,
)
from sae_lens.saes import TrainingSAE, TrainingSAEConfig


def config(**fields: Any) -> LanguageModelSAERunnerConfig:
    return LanguageModelSAERunnerConfig(**{"verbose": False, **fields})


def test_derived_values_of_the_defaults() -> None:
    cfg = config()
    assert (cfg.d_sae, cfg.expansion_factor) == (2048, 4)
    assert (cfg.activation_fn, cfg.activation_fn_kwargs) == ("relu", {})
    assert cfg.run_name == "2048-L1-0.001-LR-0.0003-Tokens-2.000e+06"
    assert cfg.model_from_pretrained_kwargs == {"center_writing_weights": False}
    assert cfg.act_store_device == "cpu"
    assert cfg.lr_end == pytest.approx(3e-5)
    assert cfg.tokens_per_buffer == 4096 * 128 * 20  # type: ignore[attr-defined]
    assert cfg.total_training_steps == 488
    assert cfg.cached_activations_path is None


def test_other_derived_values() -> None:
    topk = config(architecture="topk", d_in=64, expansion_factor=8)
    assert (topk.activation_fn, topk.activation_fn_kwargs) == ("topk", {"k": 100})
    assert topk.d_sae == 512
    cached = config(
        use_cached_activations=True, dataset_path="a/b", model_name="c/d", hook_head_index=3
    )
    assert cached.cached_activations_path == "activations/a_b/c_d/blocks.0.hook_mlp_out_3"
    assert _default_cached_activations_path("a", "b", "c", None) == "activations/a/b/c"
    assert config(model_class_name="HookedMamba").model_from_pretrained_kwargs == {}
    with_finetuning = config(training_tokens=100, finetuning_tokens=50, train_batch_size_tokens=10)
    assert with_finetuning.total_training_tokens == 150
    assert with_finetuning.total_training_steps == 15


def test_the_layer_is_read_from_the_hook_unless_it_is_given() -> None:
    assert config(hook_name="blocks.3.hook_resid_post").hook_layer == 3
    assert config(hook_name="transformer.h.5", hook_layer=6).hook_layer == 6

    @dataclasses.dataclass
    class Mine(LanguageModelSAERunnerConfig):
        extra: int = dataclasses.field(default=1, kw_only=True)

    mine = Mine(hook_name="blocks.3.x", hook_layer=2, verbose=False)
    assert (mine.hook_layer, mine.extra) == (2, 1)


def test_fields_keep_the_positional_order() -> None:
    cfg = LanguageModelSAERunnerConfig("m", "HookedTransformer", "blocks.1.x", "NOT_IN_USE", 1)
    assert (cfg.model_name, cfg.hook_layer) == ("m", 1)
    positional = [f.name for f in dataclasses.fields(cfg) if not f.kw_only]
    assert positional[-4:] == [
        "sae_lens_version", "sae_lens_training_version", "decoder_heuristic_init_norm",
        "exclude_special_tokens",
    ]  # fmt: skip
    assert positional[12:15] == ["cached_activations_path", "architecture", "d_in"]
    assert positional[43:46] == ["compile_llm", "llm_compilation_mode", "compile_sae"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resume": True}, "resume_from_checkpoint"),
        ({"architecture": "topk", "activation_fn": "relu"}, "activation_fn must be topk"),
        (
            {"architecture": "topk", "activation_fn_kwargs": {"n": 1}},
            "activation_fn_kwargs.k must be provided",
        ),
        ({"d_sae": 10, "expansion_factor": 2}, "d_sae=10 and expansion_factor=2"),
        ({"b_dec_init_method": "median"}, "'median'.*geometric_median, mean, zeros"),
        ({"decoder_heuristic_init": True}, "normalize_sae_decoder and decoder_heuristic_init"),
        (
            {"scale_sparsity_penalty_by_decoder_norm": True},
            "normalize_sae_decoder and scale_sparsity_penalty_by_decoder_norm",
        ),
        ({"finetuning_method": "decoder"}, "apply_b_dec_to_input"),
        ({"finetuning_method": "scales"}, "'scales'.*unrotated_decoder"),
        ({"normalize_activations": "batch"}, "'batch'.*layer_norm"),
        ({"context_size": -1}, "context_size is -1"),
        ({"context_size": 0}, "leaves no position"),
        ({"n_batches_in_buffer": 1}, "n_batches_in_buffer is 1"),
        ({"wandb_log_frequency": 0}, "wandb_log_frequency is 0"),
        ({"exclude_special_tokens": ["bos"]}, "'bos'.*integers"),
        ({"architecture": "jump"}, "Unknown architecture 'jump'.*jumprelu"),
        ({"resume_from_checkpoint": " "}, "latest"),
        ({"wandb_id": "../elsewhere"}, "names a folder"),
        ({"on_nan": "ignore"}, "skip_batch"),
        ({"keep_last": 0}, "keep_last"),
        ({"keep_best_mode": "best"}, "max, min"),
        ({"checkpoint_every_minutes": 0}, "checkpoint_every_minutes"),
    ],
)
def test_contradictions_are_refused_with_a_way_out(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_an_unknown_keyword_gets_a_suggestion() -> None:
    with pytest.raises(TypeError, match=r"'lerning_rate'|'train_batch_size_token'.*did you mean"):
        config(train_batch_size_token=3)


@pytest.mark.parametrize("seqpos", [(None, 10, -1), (None, 10, 0), (5, 5, None), (6, 3, None)])
def test_slices_without_positions_are_refused(seqpos: tuple[int | None, ...]) -> None:
    for kind in (ValueError, AssertionError):
        with pytest.raises(kind):
            _validate_seqpos(seqpos, 10)
        with pytest.raises(kind):
            config(context_size=10, seqpos_slice=seqpos)


@pytest.mark.parametrize("seqpos", [(None,), (5,), (2, 8), (1, 9, 1), (1, 9, None), (-3, None, 2)])
def test_other_slices_are_fine(seqpos: tuple[int | None, ...]) -> None:
    _validate_seqpos(seqpos, 10)


def test_fields_without_effect_say_so_and_are_no_error() -> None:
    with pytest.warns(UserWarning, match="hook_eval"):
        config(hook_eval="blocks.0.attn.pattern")
    with pytest.warns(UserWarning, match="is_dataset_tokenized"):
        config(is_dataset_tokenized=False)
    with pytest.warns(UserWarning, match="save_final_checkpoint"):
        config(save_final_checkpoint=False)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"noise_scale": 0.1, "architecture": "gated"}, "noise_scale=0.1 has no effect"),
        ({"lp_norm": 2, "architecture": "jumprelu"}, "no effect on the jumprelu"),
        (
            {
                "scale_sparsity_penalty_by_decoder_norm": True, "architecture": "topk",
                "normalize_sae_decoder": False,
            },
            "scale_sparsity_penalty_by_decoder_norm=True",
        ),
        ({"cached_activations_path": "somewhere"}, "'somewhere' is not read"),
        ({"lp_norm": 2, "architecture": "gated"}, "lp_norm=2 has no effect on the gated"),
        ({"jumprelu_bandwidth": 0.1}, "jumprelu_bandwidth=0.1 has no effect on the standard"),
        ({"l1_coefficient": 2.0, "architecture": "topk"}, "l1_coefficient=2.0 has no effect"),
        ({"activation_fn": "tanh-relu", "architecture": "jumprelu"}, "activation_fn='tanh-relu'"),
        ({"decoder_heuristic_init_norm": 0.3}, "decoder_heuristic_init_norm=0.3 has no effect"),
        (
            {"architecture": "batchtopk", "activation_fn_kwargs": {"k": 3}, "lp_norm": 2},
            "lp_norm=2 has no effect on the batchtopk",
        ),
        ({"lr_end": 1e-9}, "lr_end=1e-09 has no effect: the schedule is constant"),
        ({"n_restart_cycles": 3}, "n_restart_cycles=3 has no effect"),
        ({"finetuning_method": "scale"}, "no effect: finetuning_tokens is 0"),
        ({"llm_compilation_mode": "max-autotune"}, "no effect: compile_llm is False"),
        ({"sae_compilation_mode": "max-autotune"}, "no effect: compile_sae is False"),
        ({"keep_best_mode": "min"}, "no effect: keep_best_metric is None"),
        ({"eval_dataset_split": "test"}, "no effect: eval_dataset_path is None"),
        ({"eval_dataset_path": "x", "log_to_wandb": False}, "nothing is evaluated without a log"),
        (
            {"use_cached_activations": True, "autocast_lm": True, "log_to_wandb": False},
            "no effect: the activations are read from a cache",
        ),
        ({"mse_loss_normalization": "batch"}, "plain squared errors are taken"),
        ({"features": {"whitening_shrinkage": 0.5}}, "normalize_activations is 'none'"),
        (
            {
                "features": {"k_schedule": {"initial_k": 200}}, "compile_sae": True,
                "architecture": "topk",
            },
            "anew for each k",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_here_are_pointed_out(
    fields: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    config(**fields)
    assert words in caplog.text
    caplog.clear()
    config(noise_scale=0.1, lp_norm=2)
    config(lr_end=1e-5, lr_scheduler_name="cosineannealing", keep_best_metric="a/b")
    config(architecture="jumprelu", jumprelu_bandwidth=0.1, jumprelu_init_threshold=0.1)
    assert caplog.text == ""


def test_early_names_still_work() -> None:
    with pytest.warns(DeprecationWarning, match="hook_point"):
        cfg = config(hook_point="blocks.{layer}.hook_mlp_out", hook_point_layer=2)
    assert (cfg.hook_name, cfg.hook_layer) == ("blocks.2.hook_mlp_out", 2)
    assert config(normalize_activations=True).normalize_activations == "expected_average_only_in"
    objects = config(dtype=torch.float64, device=torch.device("cpu"))
    assert (objects.dtype, objects.device) == ("torch.float64", "cpu")


def test_a_run_has_a_checkpoint_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = config(), config()
    assert first.checkpoint_path != second.checkpoint_path
    run_id = first.checkpoint_path.removeprefix("checkpoints/")
    assert len(run_id) == 8
    assert run_id.isalnum() and run_id.islower() | run_id.isdigit()
    named = config(checkpoint_path="a/b", wandb_id="my-run")
    assert named.checkpoint_path == "a/b/my-run"
    monkeypatch.setitem(sys.modules, "wandb", None)  # ids are made without the package
    assert config().checkpoint_path != first.checkpoint_path
    differing = {k for k, v in first.to_dict().items() if second.to_dict()[k] != v}
    assert differing == {"checkpoint_path"}


@pytest.mark.parametrize("fields", [{}, {"wandb_id": "x1"}, {"architecture": "topk", "d_in": 30}])
def test_configs_rebuilt_from_their_own_values_are_equal(fields: dict[str, Any]) -> None:
    cfg = config(**fields)
    assert dataclasses.replace(cfg) == cfg
    assert LanguageModelSAERunnerConfig.from_dict(cfg.to_dict()).to_dict() == cfg.to_dict()
    assert pickle.loads(pickle.dumps(cfg)).to_dict() == cfg.to_dict()


@pytest.mark.parametrize("name", ["folder/", "folder/run.json", "folder/prefix_", "bare_"])
def test_json_round_trip(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = config(seqpos_slice=(1, 5), context_size=16, model_kwargs={"a": 1})
    cfg.to_json(name)
    (written,) = list(tmp_path.rglob("*.json"))
    want = name if name.endswith(".json") else name + "cfg.json"
    assert written == tmp_path / want
    assert "\n  " in written.read_text()
    again = LanguageModelSAERunnerConfig.from_json(name)
    assert again == cfg
    assert again.seqpos_slice == (1, 5)


def test_json_with_an_existing_folder_and_unknown_keys(tmp_path: Path) -> None:
    config(d_in=7).to_json(str(tmp_path))
    file = tmp_path / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "from_the_future": 1}))
    assert LanguageModelSAERunnerConfig.from_json(str(tmp_path)).d_in == 7
    file.write_text("{not json")
    with pytest.raises(ValueError, match="is not JSON"):
        LanguageModelSAERunnerConfig.from_json(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        LanguageModelSAERunnerConfig.from_json(str(tmp_path / "nowhere.json"))


def test_what_the_sae_gets() -> None:
    cfg = config(finetuning_method="scale", d_in=8, jumprelu_bandwidth=0.5)
    base = cfg.get_base_sae_cfg_dict()
    assert len(base) == 21
    assert base["finetuning_scaling_factor"] is True
    assert base["activation_fn_str"] == "relu"
    assert "neuronpedia_id" not in base
    training = cfg.get_training_sae_cfg_dict()
    assert training["jumprelu_bandwidth"] == 0.5
    assert len(training) == 21 + 13
    sae_config = TrainingSAEConfig.from_sae_runner_config(cfg)
    assert sae_config == cfg.training_sae_config()
    assert sae_config.form == "v5"
    # a runner config may also serve as the SAE's config itself
    assert TrainingSAE(cfg).W_dec.shape == (32, 8)


def test_verbose_sums_up(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sae_lens"):
        config(verbose=True, use_ghost_grads=True)
    assert "Run name: 2048-L1-0.001" in caplog.text
    assert "Total training steps: 488" in caplog.text
    assert "ghost" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="sae_lens"):
        config()
    assert caplog.text == ""


def test_dict_fields() -> None:
    assert json_dict('{"k": 3}') == {"k": 3}
    for text in ("[1]", "{k: 3}"):
        with pytest.raises(ValueError, match="JSON"):
            json_dict(text)

    @dataclasses.dataclass
    class Holder:
        filled: dict[str, int] = dict_field(default={"a": 1})  # noqa: RUF009
        empty: dict[str, int] | None = dict_field(default=None)  # noqa: RUF009

    first, second = Holder(), Holder()
    first.filled["b"] = 2
    assert second.filled == {"a": 1}
    assert second.empty is None


def test_all_public_names_are_there() -> None:
    for name in public.__all__:
        assert hasattr(public, name)
