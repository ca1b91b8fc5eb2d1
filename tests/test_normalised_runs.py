"""Every architecture under every normalisation: what is saved works on raw activations."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lens.activations.scaling import scaled, unscaled
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.errors import SAELoadError
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.registry import get_sae_training_class
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes import SAE, TrainingSAE
from sae_lens.saes.normalization import NORMALIZATION_KINDS, normalize
from sae_lens.saes.whitening import fold_whitening
from sae_lens.training.sources import IteratorSource, SourceSettings, StoreSource
from sae_lens.training.trainer import SAETrainer
from sae_lens.whitening import CovarianceEstimate, Whitening, undo_parts, whiten_parts
from tests.helpers import (
    ARCHITECTURES,
    D_IN,
    activations,
    assert_close,
    make_training_sae,
    randomize,
    several_hooks_configs,
    tiny_model,
)

IN, OUT = "blocks.0.ln2.hook_normalized", "blocks.0.mlp.hook_post"
MLP_OUT = "blocks.0.hook_mlp_out"
READS = [f"blocks.{layer}.hook_resid_mid" for layer in range(2)]
WRITES = [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
D_OUT, BATCH, N_STEPS = 4 * D_IN, 32, 6
SINGLE = (
    "standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk", "abstopk",
    "matching_pursuit",
)  # fmt: skip
TRANSCODERS = tuple(
    f"{kind}{name}"
    for kind in ("", "jumprelu_", "topk_", "batchtopk_")
    for name in ("transcoder", "skip_transcoder")
)
SEVERAL_HOOKS = tuple(several_hooks_configs())
ALL_TRAINED = (*SINGLE, *TRANSCODERS, *SEVERAL_HOOKS)
FORMS = [(name, "v5") for name in ARCHITECTURES] + [(name, "v6") for name in ALL_TRAINED]
CASES = [(*of, kind) for of in FORMS for kind in NORMALIZATION_KINDS]


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of these runs; that files are flushed is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_dict(
        {"tokens": torch.randint(2, 32, (40, 8), generator=generator).tolist()}
    )


@pytest.fixture(scope="module")
def cached(model: Any, rows: Dataset) -> Any:
    """All activations, of tokens that vary in length of activation."""
    return model.run_with_cache(torch.tensor(rows["tokens"]))[1]


def hooks_of(architecture: str) -> tuple[list[str], list[str]]:
    """What an SAE reads, and what else is in a row of its training data."""
    if architecture in SEVERAL_HOOKS:
        return READS, WRITES if "transcoder" in architecture else []
    return [IN], [OUT] if "transcoder" in architecture else []


def raw_rows(cached: Any, architecture: str) -> tuple[Tensor, int]:
    """Raw training rows, and the width of the part that is read."""
    reads, writes = hooks_of(architecture)
    parts = [cached[name].flatten(0, 1) for name in (*reads, *writes)]
    return torch.cat(parts, dim=-1), len(reads) * D_IN


def config(
    folder: Path,
    architecture: str,
    form: str,
    kind: str,
    sae: dict[str, Any] | None = None,
    **more: Any,
) -> LanguageModelSAERunnerConfig:
    fields: dict[str, Any] = {
        "model_name": "tiny", "hook_name": IN, "context_size": 8, "d_in": D_IN,
        "train_batch_size_tokens": BATCH, "store_batch_size_prompts": 4, "n_batches_in_buffer": 8,
        "training_tokens": BATCH * N_STEPS, "n_checkpoints": 2, "log_to_wandb": False,
        "checkpoint_path": str(folder), "wandb_id": "run", "verbose": False, "lr": 1e-2,
        "model_from_pretrained_kwargs": {}, "n_batches_for_norm_estimate": 3,
        "b_dec_init_method": "mean", "output_path": str(folder / "out"), **more,
    }  # fmt: skip
    if form == "v5":
        fields |= {"architecture": architecture, "d_sae": 32, "normalize_activations": kind}
        if architecture == "topk":
            fields["activation_fn_kwargs"] = {"k": 4}
        return LanguageModelSAERunnerConfig(**fields)
    config_class = get_sae_training_class(architecture).config_class
    options: dict[str, Any] = {"d_in": D_IN, "d_sae": 32, "normalize_activations": kind}
    if "topk" in architecture:
        options["k"] = 4
    if "matryoshka" in architecture:
        options["matryoshka_widths"] = [8, 32]
    if architecture in SEVERAL_HOOKS:
        reads, writes = hooks_of(architecture)
        options |= {"hook_names": reads} | ({"hook_names_out": writes} if writes else {})
        fields["hook_name"] = reads[0]
    elif "transcoder" in architecture:
        options |= {"d_out": D_OUT, "hook_name": IN, "hook_name_out": OUT} | (sae or {})
    if architecture == "matching_pursuit":
        options["max_iterations"] = 4
    del fields["d_in"]
    return LanguageModelSAERunnerConfig(sae=config_class(**options), **fields)


def train(cfg: Any, model: Any, rows: Dataset) -> SAETrainingRunner:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All samples in the training dataset")
        warnings.filterwarnings("ignore", "The training dataset has")
        runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
        runner.run()
    return runner


def test_the_bias_of_a_transcoder_starts_at_the_mean_of_raw_targets(
    model: Any, rows: Dataset, tmp_path: Path
) -> None:
    cfg = config(tmp_path, "transcoder", "v6", "layer_norm")
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    targets = runner.source.sample()[:, D_IN:]
    assert_close(runner.sae.b_dec, targets.mean(dim=0))
    cfg = config(tmp_path / "second", "standard", "v6", "layer_norm")
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    normalised, _ = normalize("layer_norm", runner.source.sample())
    assert_close(runner.sae.b_dec, normalised.mean(dim=0))


def test_a_decoder_from_the_mlp_is_whitened_with_what_it_reconstructs(
    model: Any, rows: Dataset, tmp_path: Path
) -> None:
    cfg = config(
        tmp_path, "transcoder", "v6", "whitening", {"hook_name_out": MLP_OUT, "d_out": D_IN},
        features={"initial_weights": {"decoder_from_mlp_layer": 0}}, b_dec_init_method="zeros",
    )  # fmt: skip
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    assert runner.source.whitening is not None
    fold_whitening(runner.sae, *runner.source.whitening)
    assert_close(runner.sae.W_dec, model.blocks[0].mlp.W_out[:32], atol=1e-4)


def output_in_training_space(trainer: Any, raw: Tensor, n_in: int) -> Tensor:
    """What the SAE in training, as it is used in inference, makes of raw rows."""
    sae, source = copy.deepcopy(trainer.sae), trainer.source
    if trainer.normalizes_decoder:
        sae.set_decoder_norm_to_unit_norm()
    inference = SAE.from_components(*sae.inference_components()).eval()
    factor = 1.0 if source.norm_scaling_factor is None else source.norm_scaling_factor
    x = source.finished(scaled(raw, factor))[:, :n_in]
    with torch.no_grad():
        out = unscaled(inference(x), factor)
    if source.whitening is None:
        return out
    return undo_parts(source.whitening[source.settings.n_read :] or source.whitening, out)


@pytest.mark.parametrize(("architecture", "form", "kind"), CASES)
def test_what_is_saved_works_on_raw_activations(
    architecture: str, form: str, kind: str, model: Any, rows: Dataset, cached: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    raw, n_in = raw_rows(cached, architecture)
    expected: dict[str, Tensor] = {}
    finish, save = SAETrainer._finish_weights, SAETrainingRunner.save_checkpoint

    def before_finishing(trainer: Any) -> None:
        name = f"final_{trainer.n_training_tokens}"
        expected[name] = output_in_training_space(trainer, raw, n_in)
        finish(trainer)

    def before_saving(trainer: Any, checkpoint_name: str, wandb_aliases: Any = None) -> None:
        if checkpoint_name not in expected:
            expected[checkpoint_name] = output_in_training_space(trainer, raw, n_in)
        save(trainer, checkpoint_name, wandb_aliases)

    monkeypatch.setattr(SAETrainer, "_finish_weights", before_finishing)
    monkeypatch.setattr(SAETrainingRunner, "save_checkpoint", staticmethod(before_saving))
    runner = train(config(tmp_path, architecture, form, kind), model, rows)
    assert len(expected) == 2
    at_run_time = kind in ("constant_norm_rescale", "layer_norm")
    folders = {name: tmp_path / "run" / name for name in expected}
    folders["out"] = tmp_path / "out"
    final = next(name for name in expected if name.startswith("final"))
    expected["out"] = expected[final]
    for name, want in expected.items():
        loaded = SAE.load_from_disk(folders[name]).eval()
        assert loaded.cfg.normalize_activations == (kind if at_run_time else "none")
        assert_close(loaded(raw[:, :n_in]), want, atol=2e-4, rtol=1e-3)
    # the returned one is the saved one; those that select over a batch only as they are used
    mine = SAE.from_components(*runner.sae.inference_components()).eval()
    assert_close(mine(raw[:, :n_in]), expected["out"], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("architecture", "form"), FORMS)
def test_folding_whitening_is_exact_and_can_be_undone(architecture: str, form: str) -> None:
    cfg = config(Path("unused"), architecture, form, "whitening", wandb_id=None)
    cfg.b_dec_init_method = "zeros"
    torch.manual_seed(0)
    sae = TrainingSAE(cfg.training_sae_config()).eval()
    randomize(sae)
    widths = getattr(sae, "activation_widths", (D_IN,))
    maps = [whitening_of(width, seed) for seed, width in enumerate(widths)]
    reads = maps[: getattr(sae, "n_hooks", 1)]
    x = activations(12, sum(widths[: len(reads)])) * 3 + 1
    with torch.no_grad():
        before = sae(whiten_parts(reads, x))
        want = undo_parts(maps[len(reads) :] or maps, before)
        fold_whitening(sae, *maps)
        assert sae.cfg.normalize_activations == "none"
        assert_close(sae(x), want, atol=1e-3, rtol=1e-3)
        fold_whitening(sae, *(part.inverted() for part in maps))
        assert_close(sae(whiten_parts(reads, x)), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_the_mean_goes_into_the_biases_where_b_dec_is_not_subtracted(architecture: str) -> None:
    sae = make_training_sae(architecture, apply_b_dec_to_input=False).eval()
    white = whitening_of(D_IN, 0)
    x = activations(12) * 3 + 1
    with torch.no_grad():
        want = white.undo(sae(white.apply(x)))
        fold_whitening(sae, white)
        assert_close(sae(x), want, atol=1e-3, rtol=1e-3)


def whitening_of(width: int, seed: int) -> Whitening:
    estimate = CovarianceEstimate()
    rows = activations(400, width, seed=seed) @ torch.diag(torch.linspace(0.2, 3, width)) + 2
    estimate.add(rows[:100])
    estimate.add(rows[100:])
    return estimate.whitening(0.01)


def test_without_biases_a_mean_has_no_place() -> None:
    config_class = get_sae_training_class("matching_pursuit").config_class
    sae = TrainingSAE(config_class(d_in=D_IN, d_sae=8, apply_b_dec_to_input=False))
    with pytest.raises(ValueError, match="set apply_b_dec_to_input=True"):
        config_class(
            d_in=D_IN, d_sae=8, apply_b_dec_to_input=False, normalize_activations="whitening"
        )
    with pytest.raises(ValueError, match="set apply_b_dec_to_input=True"):
        fold_whitening(sae, whitening_of(D_IN, 0))
    with pytest.raises(ValueError, match="reads 2 activations; 1 maps"):
        fold_whitening(
            TrainingSAE(several_hooks_configs(2, D_IN)["crosscoder"]), whitening_of(D_IN, 0)
        )


@pytest.mark.parametrize("kind", ["expected_average_only_in", "whitening"])
@pytest.mark.parametrize(
    ("architecture", "form"),
    [("standard", "v5"), ("topk", "v6"), ("skip_transcoder", "v6"), ("matching_pursuit", "v6"),
     ("crosscoder", "v6"), ("topk_cross_layer_transcoder", "v6")],
)  # fmt: skip
def test_a_run_goes_on_from_saved_weights_where_they_stood(
    architecture: str, form: str, kind: str, model: Any, rows: Dataset, cached: Any, tmp_path: Path
) -> None:
    """What is read from a file works on raw activations; the run trains on others."""
    train(config(tmp_path, architecture, form, kind), model, rows)
    saved = tmp_path / "run" / f"final_{BATCH * N_STEPS}"
    cfg = config(
        tmp_path / "next", architecture, form, kind, from_pretrained_path=str(saved), lr=0.0,
        normalize_sae_decoder=False,
    ) if form == "v5" else config(
        tmp_path / "next", architecture, form, kind, from_pretrained_path=str(saved), lr=0.0
    )  # fmt: skip
    again = train(cfg, model, rows).sae.eval()
    before = SAE.load_from_disk(saved).eval()
    raw, n_in = raw_rows(cached, architecture)
    assert_close(again(raw[:, :n_in]), before(raw[:, :n_in]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "architecture", ["standard", "skip_transcoder", "crosscoder", "jumprelu_cross_layer_transcoder"]
)
@pytest.mark.parametrize("kind", NORMALIZATION_KINDS)
def test_evaluations_while_training_are_of_the_sae_as_it_is_saved(
    architecture: str, kind: str, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    fields: dict[str, Any] = {
        "log_to_jsonl": str(log), "wandb_log_frequency": 1, "eval_every_n_wandb_logs": N_STEPS,
        "n_eval_batches": 2,
    }  # fmt: skip
    runner = train(config(tmp_path, architecture, "v6", kind, **fields), model, rows)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    group = "model_performance_preservation"
    logged = [line[group] for line in lines if group in line]
    loaded = SAE.load_from_disk(tmp_path / "run" / f"final_{BATCH * N_STEPS}")
    wanted = EvalConfig(compute_ce_loss=True, n_eval_reconstruction_batches=2)
    stream = runner.activations_store.evaluation_stream()
    found = run_evals(loaded, stream, model, wanted).metrics[group]
    assert len(logged) == 1
    assert found["ce_loss_with_sae"] != found["ce_loss_without_sae"]
    for name, value in found.items():
        assert logged[0][name] == pytest.approx(value, rel=1e-3), name


def test_nothing_is_saved_that_lacks_its_map(tmp_path: Path) -> None:
    cfg = config(tmp_path, "topk", "v6", "whitening")
    sae = TrainingSAE(cfg.training_sae_config())
    for save in (sae.save_model, sae.save_inference_model):
        with pytest.raises(ValueError, match="the map is not part of it"):
            save(tmp_path / "sae")
    fold_whitening(sae, whitening_of(D_IN, 0))
    sae.save_model(tmp_path / "sae")


def test_a_store_that_cannot_look_ahead_is_refused() -> None:
    source = StoreSource(SimpleNamespace(estimated_norm_scaling_factor=None),
                         SourceSettings("whitening"))  # fmt: skip
    with pytest.raises(ValueError, match="SimpleNamespace has no look_ahead"):
        source.prepare()


def test_each_hook_is_whitened_by_its_own_covariance(
    model: Any, rows: Dataset, cached: Any, tmp_path: Path
) -> None:
    cfg = config(
        tmp_path, "cross_layer_transcoder", "v6", "whitening", n_batches_for_norm_estimate=100
    )
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    runner.source.prepare()
    assert runner.source.whitening is not None
    for name, found in zip((*READS, *WRITES), runner.source.whitening, strict=True):
        estimate = CovarianceEstimate()
        estimate.add(cached[name].flatten(0, 1))
        assert_close(found.matrix, estimate.whitening().matrix, atol=1e-2, rtol=1e-3)
        assert_close(found.mean, estimate.whitening().mean)


def test_a_pursuit_of_whitened_activations_is_one_in_another_metric(tmp_path: Path) -> None:
    config_class = get_sae_training_class("matching_pursuit").config_class
    sae = TrainingSAE(config_class(d_in=D_IN, d_sae=32, max_iterations=4, residual_threshold=0.5))
    before, white = copy.deepcopy(sae), whitening_of(D_IN, 0)
    fold_whitening(sae, white)
    sae.save_inference_model(tmp_path)
    loaded: Any = SAE.load_from_disk(tmp_path)
    x = activations(20) + 2
    with torch.no_grad():
        assert_close(loaded.encode(x), before.encode(white.apply(x)))
        assert (loaded.encode(x) > 0).sum(dim=-1).unique().numel() > 1
        # by hand: the most similar feature by inner products under the inverse covariance
        inverse_covariance = white.matrix @ white.matrix
        similar = (x - loaded.b_dec) @ inverse_covariance @ loaded.W_dec.T
        first = loaded.encode(x).gather(1, similar.argmax(dim=1, keepdim=True))
    assert (first > 0).all()
    file = tmp_path / "sae_weights.safetensors"
    save_file({**load_file(file), "metric": torch.eye(3)}, file)
    with pytest.raises(SAELoadError, match=r"metric has shape \[3, 3\] instead of \[16, 16\]"):
        SAE.load_from_disk(tmp_path)


def test_whitened_rows_have_unit_covariance() -> None:
    rows = activations(4000, 6) @ torch.randn(6, 6, generator=torch.Generator().manual_seed(3)) + 9
    estimate = CovarianceEstimate()
    for part in rows.split(500):
        estimate.add(part)
    white = estimate.whitening(0.0)
    z = white.apply(rows)
    assert_close(z.mean(dim=0), torch.zeros(6), atol=1e-3)
    assert_close(torch.cov(z.T, correction=0), torch.eye(6), atol=1e-2)
    assert_close(white.undo(z), rows, atol=1e-3)
    assert_close(white.inverted().apply(z), rows, atol=1e-3)
    # fully shrunk, all that is left is to centre and to scale
    scaled = estimate.whitening(1.0).matrix
    assert_close(scaled, torch.eye(6) * scaled[0, 0])
    assert_close(1 / scaled[0, 0].pow(2), torch.cov(rows.T, correction=0).diagonal().mean())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "learn from"),
        ([torch.ones(5, 4)], "mean variance"),
        ([torch.full((5, 4), torch.inf)], "mean variance"),
    ],
)
def test_what_cannot_be_whitened_is_refused(batches: list[Tensor], message: str) -> None:
    source = IteratorSource(batches, SourceSettings("whitening", n_batches=4))
    with pytest.raises(ValueError, match=message):
        source.prepare()
