"""Transcoders trained on a language model, by both trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sae_lens.activations.paired import PairedActivationsStore
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.lm_saes import Initializer, InitializerConfig, SAEConfig, Trainer, TrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes import SAE, StandardTrainingSAEConfig, TrainingSAE
from tests.helpers import D_IN, assert_close, tiny_model

IN, OUT = "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_dict(
        {"tokens": torch.randint(2, 32, (60, 16), generator=generator).tolist()}
    )


def flat_config(tmp_path: Path, **fields: Any) -> LanguageModelSAERunnerConfig:
    return LanguageModelSAERunnerConfig(
        **{
            "model_name": "tiny", "context_size": 16, "train_batch_size_tokens": 32,
            "store_batch_size_prompts": 4, "n_batches_in_buffer": 4, "training_tokens": 32 * 16,
            "log_to_wandb": False, "checkpoint_path": str(tmp_path / "checkpoints"),
            "output_path": str(tmp_path / "out"), "verbose": False, "lr": 1e-2,
            "model_from_pretrained_kwargs": {}, "n_checkpoints": 1, "eval_batch_size_prompts": 2,
            "log_to_jsonl": str(tmp_path / "log.jsonl"), "wandb_log_frequency": 4,
            "eval_every_n_wandb_logs": 2, "n_eval_batches": 1, **fields,
        }
    )  # fmt: skip


def run_config(tmp_path: Path, architecture: str = "transcoder", **fields: Any) -> Any:
    config_class = get_sae_training_class(architecture).config_class
    sae_fields = {
        name: fields.pop(name)
        for name in ("hook_name", "hook_name_out", "normalize_activations", "d_in", "d_out")
        if name in fields
    }
    if "topk" in architecture:
        sae_fields["k"] = 4
    sae = config_class(
        **{"d_in": D_IN, "d_sae": 32, "hook_name": IN, "hook_name_out": OUT, **sae_fields}
    )
    return flat_config(tmp_path, sae=sae, **fields)


def test_pairs_are_of_the_same_token(model: Any, rows: Dataset, tmp_path: Path):
    cfg = run_config(tmp_path)
    store = PairedActivationsStore.from_config(model, cfg, override_dataset=rows)
    store.check_model()
    batch = store.next_batch()
    assert batch.shape == (32, 1, 2 * D_IN)
    x, y = batch[:, 0, :D_IN], batch[:, 0, D_IN:]
    assert_close(model.blocks[0].mlp(x.unsqueeze(0))[0], y)


def test_rows_for_a_saved_transcoder(model: Any, rows: Dataset, tmp_path: Path):
    runner = SAETrainingRunner(run_config(tmp_path), override_dataset=rows, override_model=model)
    runner.sae.save_inference_model(tmp_path / "sae")
    sizes: dict[str, Any] = {"context_size": 16, "dataset": rows, "seed": runner.cfg.seed,
                             "store_batch_size_prompts": 4, "n_batches_in_buffer": 4,
                             "train_batch_size_tokens": 32}  # fmt: skip
    sae = SAE.load_from_disk(tmp_path / "sae")
    store = PairedActivationsStore.from_sae(model, sae, **sizes)
    assert torch.equal(store.next_batch(), runner.activations_store.next_batch())
    plain = TrainingSAE(StandardTrainingSAEConfig(d_in=D_IN, d_sae=8, hook_name=IN))
    with pytest.raises(ValueError, match="names no output hook"):
        PairedActivationsStore.from_sae(model, plain, **sizes)


@pytest.mark.parametrize("normalization", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("architecture", ["transcoder", "batchtopk_skip_transcoder"])
def test_a_run_on_a_language_model(
    architecture: str, normalization: str, model: Any, rows: Dataset, tmp_path: Path
):
    cfg = run_config(tmp_path, architecture, normalize_activations=normalization)
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    start = runner.sae.W_dec.detach().clone()
    sae = runner.run().eval()
    assert not torch.equal(start / start.norm(), sae.W_dec / sae.W_dec.norm())
    assert '"losses/mse_loss"' in (tmp_path / "log.jsonl").read_text()
    assert "ce_loss" in (tmp_path / "log.jsonl").read_text()
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert loaded.cfg.metadata.hook_name == IN
    assert loaded.cfg.metadata.hook_name_out == OUT
    assert loaded.cfg.normalize_activations == "none"
    tokens = torch.tensor(rows[:8]["tokens"])
    _, cache = model.run_with_cache(tokens, names_filter=[IN, OUT])
    if architecture == "transcoder":
        assert_close(loaded(cache[IN]), sae(cache[IN]))
        errors = (loaded(cache[IN]) - cache[OUT]).pow(2).sum(-1).mean()
        assert errors < cache[OUT].pow(2).sum(-1).mean()


def test_hooks_in_the_wrong_order_are_refused(model: Any, rows: Dataset, tmp_path: Path):
    with pytest.raises(ValueError, match="runs before hook_name"):
        run_config(tmp_path, hook_name=OUT, hook_name_out=IN)
    # where names do not tell, one token through the model does
    names = {"hook_name": "blocks.0.mlp.hook_post", "hook_name_out": "blocks.0.mlp.hook_pre"}
    cfg = run_config(tmp_path, d_in=64, d_out=64, **names)
    with pytest.raises(ValueError, match="runs before hook_name"):
        SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    cfg = run_config(tmp_path, hook_name_out="blocks.0.hook_nothing")
    with pytest.raises(ValueError, match="hook_nothing"):
        SAETrainingRunner(cfg, override_dataset=rows, override_model=model)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("transcoder", {"l1_coefficient": 2.0}),
        ("batchtopk_skip_transcoder", {"activation_fn_kwargs": {"k": 4}}),
    ],
)
def test_flat_fields_name_an_output_hook_of_another_width(
    architecture: str, fields: dict[str, Any], model: Any, rows: Dataset, tmp_path: Path
):
    wide = "blocks.0.mlp.hook_post"
    flat: dict[str, Any] = {
        "architecture": architecture, "d_in": D_IN, "d_sae": 32, "hook_name": IN,
        "hook_name_out": wide, "d_out": 64, **fields,
    }  # fmt: skip
    cfg = flat_config(tmp_path, **flat)
    assert cfg.sae is not None and cfg.sae.form == "v6"
    assert type(cfg).from_dict(cfg.to_dict()).to_dict() == cfg.to_dict()
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    assert runner.sae.W_dec.shape == (32, 64)
    for name, value in fields.items():
        assert getattr(runner.sae.cfg, name) == value
    runner.run()
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert loaded.cfg.metadata.hook_name_out == wide
    tokens = torch.tensor(rows[:8]["tokens"])
    _, cache = model.run_with_cache(tokens, names_filter=[IN, wide])
    error = (loaded(cache[IN]) - cache[wide]).pow(2).sum(-1).mean()
    assert error < cache[wide].pow(2).sum(-1).mean()


def test_an_output_hook_may_be_named_beside_the_config_of_the_sae(tmp_path: Path):
    sae = get_sae_training_class("transcoder").config_class(d_in=D_IN, d_sae=32)
    cfg = flat_config(tmp_path, sae=sae, hook_name=IN, hook_name_out=OUT)
    assert cfg.sae is not None and cfg.training_sae_config().hook_name_out == OUT
    assert cfg.d_out == D_IN and sae.hook_name_out is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "standard", "hook_name_out": OUT}, "is for transcoders"),
        ({"architecture": "transcoder"}, "set hook_name_out"),
        ({"architecture": "topk_transcoder", "hook_name_out": OUT}, "needs a k"),
        (
            {"architecture": "transcoder", "hook_name": OUT, "hook_name_out": IN},
            "runs before hook_name",
        ),
        ({"architecture": "transcoder", "hook_name_out": OUT, "apply_b_dec_to_input": True},
         "must be False"),
    ],
)  # fmt: skip
def test_output_hooks_that_make_no_sense(fields: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        flat_config(tmp_path, **{"d_in": D_IN, "d_sae": 32, "hook_name": IN, **fields})


def test_two_output_hooks_contradict_each_other(tmp_path: Path):
    config_class = get_sae_training_class("transcoder").config_class
    sae = config_class(d_in=D_IN, d_sae=32, hook_name=IN, hook_name_out=OUT)
    with pytest.raises(ValueError, match="contradicts hook_name_out"):
        flat_config(tmp_path, sae=sae, hook_name_out="blocks.1.hook_mlp_out")
    with pytest.raises(ValueError, match="contradicts d_out"):
        flat_config(tmp_path, sae=sae, d_out=7)


def test_hooks_of_different_lengths_are_refused(model: Any, rows: Dataset, tmp_path: Path):
    names = {"hook_name": "blocks.0.hook_resid_pre", "hook_name_out": "blocks.0.attn.hook_pattern"}
    cfg = run_config(tmp_path, **names)
    with pytest.raises(ValueError, match="different lengths"):
        SAETrainingRunner(cfg, override_dataset=rows, override_model=model)


def test_widths_are_checked(model: Any, rows: Dataset, tmp_path: Path):
    cfg = run_config(tmp_path, hook_name_out="blocks.0.mlp.hook_post")
    with pytest.raises(RuntimeError, match=r"d_out is 16, but the activations .* width of 64"):
        SAETrainingRunner(cfg, override_dataset=rows, override_model=model)


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk", "batchtopk"])
def test_the_other_trainer_trains_transcoders_too(act_fn: Any, model: Any, rows: Dataset):
    tokens = torch.tensor(rows[:32]["tokens"]).view(4, 8, 16)
    batches = []
    for part in tokens:
        _, cache = model.run_with_cache(part, names_filter=[IN, OUT])
        batches.append({"tokens": part, IN: cache[IN], OUT: cache[OUT]})
    init = Initializer(
        InitializerConfig(
            initialize_tc_with_mlp=True, model_layer=0, init_encoder_with_decoder_transpose=False
        )
    )
    cfg = SAEConfig(
        hook_point_in=IN,
        hook_point_out=OUT,
        d_model=D_IN,
        expansion_factor=2,
        act_fn=act_fn,
        top_k=4,
    )
    sae = init.initialize_sae_from_config(cfg, batches, model=model)
    assert_close(sae.W_dec, model.blocks[0].mlp.W_out[:32])
    trainer = Trainer(
        TrainerConfig(
            total_training_tokens=128 * 4, amp_dtype=None, lr_warm_up_steps=0, n_checkpoints=0,
            sparsity_loss_type="tanh", auxk_coefficient=0.1,
        )
    )  # fmt: skip
    assert trainer.fit(sae, batches) is None
    assert (sae.W_dec - model.blocks[0].mlp.W_out[:32]).abs().max() > 1e-4
