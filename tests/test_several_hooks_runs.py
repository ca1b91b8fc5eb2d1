"""Crosscoders and cross-layer transcoders on language models: rows, runs, evaluations, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sae_lens import cache_activations_runner
from sae_lens.activations.joint import JointActivationsStore
from sae_lens.activations.model_group import ModelGroup
from sae_lens.activations.store import ActivationsStore
from sae_lens.activations.stores import model_for, store_class_for
from sae_lens.analysis.eval_reports import table_lines
from sae_lens.analysis.splicing import CrossLayerReplacement, splicing_of
from sae_lens.analysis.targets import ModelLoader
from sae_lens.cache_activations_runner import CacheActivationsRunner
from sae_lens.cli.main import main
from sae_lens.config import (
    CacheActivationsRunnerConfig,
    LanguageModelSAERunnerConfig,
    SAETrainerConfig,
)
from sae_lens.constants import EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.held_out_evaluation import HeldOutEvaluator
from sae_lens.preflight import training_memory
from sae_lens.registry import get_sae_training_class
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes import SAE, TrainingSAE
from sae_lens.training.features import NormFilter, TrainingFeatures
from sae_lens.training.trainer import SAETrainer
from tests.helpers import D_IN, WordTokenizer, assert_close, several_hooks_configs, tiny_model
from tests.runs import token_rows

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")

READS = [f"blocks.{layer}.ln2.hook_normalized" for layer in range(2)]
WRITES = [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
RESIDUAL = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
EVERYTHING = EvalConfig(
    n_eval_reconstruction_batches=1,
    n_eval_sparsity_variance_batches=1,
    compute_kl=True,
    compute_ce_loss=True,
    compute_l2_norms=True,
    compute_sparsity_metrics=True,
    compute_variance_metrics=True,
    compute_featurewise_density_statistics=True,
    compute_featurewise_weight_based_metrics=True,
    include_misc_metrics=True,
)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return Dataset.from_dict({"tokens": token_rows()})


def sae_config(architecture: str, **fields: Any) -> Any:
    hooks: dict[str, Any] = {"hook_names": RESIDUAL}
    if "transcoder" in architecture:
        hooks = {"hook_names": READS, "hook_names_out": WRITES}
    if "topk" in architecture:
        hooks["k"] = 4
    config_class = get_sae_training_class(architecture).config_class
    return config_class(**{"d_in": D_IN, "d_sae": 32, **hooks, **fields})


def run_config(folder: Path, sae: Any, **fields: Any) -> Any:
    return LanguageModelSAERunnerConfig(
        **{
            "sae": sae, "model_name": "tiny", "context_size": 16, "train_batch_size_tokens": 32,
            "store_batch_size_prompts": 4, "n_batches_in_buffer": 4, "training_tokens": 32 * 20,
            "log_to_wandb": False, "checkpoint_path": str(folder / "checkpoints"), "lr": 1e-2,
            "output_path": str(folder / "out"), "verbose": False, "n_checkpoints": 1,
            "model_from_pretrained_kwargs": {}, "eval_batch_size_prompts": 2,
            "log_to_jsonl": str(folder / "log.jsonl"), "wandb_log_frequency": 5,
            "eval_every_n_wandb_logs": 2, "n_eval_batches": 1, "n_batches_for_norm_estimate": 3,
            **fields,
        }
    )  # fmt: skip


@torch.no_grad()
def stacked(model: Any, tokens: Any, names: list[str]) -> torch.Tensor:
    _, cache = model.run_with_cache(torch.as_tensor(tokens), names_filter=names)
    return torch.stack([cache[name] for name in names], dim=-2)


def assert_are_among(rows: torch.Tensor, all_rows: torch.Tensor) -> None:
    differences = (rows.unsqueeze(1) - all_rows).abs().amax(dim=-1)
    assert (differences.amin(dim=1) < 1e-4).all()


# -- rows -----------------------------------------------------------------------------------------


def test_a_row_holds_all_hooks_at_one_token(model: Any, rows: Dataset, tmp_path: Path) -> None:
    cfg = run_config(tmp_path, sae_config("cross_layer_transcoder"))
    store = store_class_for(cfg.sae).from_config(model, cfg, override_dataset=rows)
    assert isinstance(store, JointActivationsStore)
    store.check_model()
    batch = store.next_batch()
    assert batch.shape == (32, 1, 4 * D_IN)
    parts = batch[:, 0].split(D_IN, dim=-1)
    for block, x, y in zip(model.blocks, parts[:2], parts[2:], strict=True):
        assert_close(block.mlp(x.unsqueeze(0))[0], y)
    seen = stacked(model, rows[:]["tokens"], [*READS, *WRITES]).flatten(2).flatten(0, 1)
    assert_are_among(batch[:, 0], seen)


def test_each_hook_has_a_factor_of_its_own(model: Any, rows: Dataset, tmp_path: Path) -> None:
    sae = sae_config("crosscoder", normalize_activations="expected_average_only_in")
    cfg = run_config(tmp_path, sae, n_batches_for_norm_estimate=100)
    store = JointActivationsStore.from_config(model, cfg, override_dataset=rows)
    store.set_norm_scaling_factor_if_needed()
    factors = store.estimated_norm_scaling_factor.view(3, D_IN)
    norms = stacked(model, rows[:]["tokens"], RESIDUAL).norm(dim=-1).mean(dim=(0, 1))
    assert_close(factors[:, 0], math.sqrt(D_IN) / norms, rtol=0.05)
    assert (factors == factors[:, :1]).all() and len(set(factors[:, 0].tolist())) == 3
    batch = store.next_batch()[:, 0].unflatten(1, (3, D_IN))
    assert_close(batch.norm(dim=-1).mean(dim=0), torch.full((3,), 4.0), rtol=0.15)
    again = JointActivationsStore.from_config(model, cfg, override_dataset=rows)
    again.load_state_dict(store.state_dict())
    assert torch.equal(again.next_batch(), store.next_batch())


@pytest.mark.parametrize("architecture", ["crosscoder", "cross_layer_transcoder"])
@pytest.mark.parametrize("multiple", [None, 1.2])
def test_batches_of_ones_own_have_a_factor_for_each_hook_too(
    architecture: str, multiple: float | None, model: Any, rows: Dataset
) -> None:
    sae: Any = TrainingSAE(
        sae_config(architecture, normalize_activations="expected_average_only_in", hook_names=READS)
    )
    names = [*READS, *WRITES][: len(sae.activation_widths)]
    raw = stacked(model, rows[:]["tokens"], names).flatten(0, 1) * torch.linspace(0.5, 2, 640)[
        torch.randperm(640, generator=torch.Generator().manual_seed(0))
    ].view(-1, 1, 1)
    features = TrainingFeatures(norm_filter=None if multiple is None else NormFilter(multiple))
    cfg = SAETrainerConfig(
        total_training_samples=32 * 4, train_batch_size_samples=32, n_batches_for_norm_estimate=10,
        features=features, lr=0.0,
    )  # fmt: skip
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=list(raw.flatten(1).split(32)))
    trainer.source.prepare()
    sample = raw[:320]
    if multiple is not None:
        lengths = raw[:, : len(READS)].flatten(1).norm(dim=-1)
        limit = multiple * lengths[:320].median()
        assert trainer.source.norm_limit == pytest.approx(float(limit), rel=1e-4)
        sample = raw[320:640][lengths[320:640] <= limit]
        assert 0 < len(sample) < 320
    factors = trainer.source.norm_scaling_factor.view(-1, D_IN)[:, 0]
    assert_close(factors, math.sqrt(D_IN) / sample.norm(dim=-1).mean(dim=0))


@pytest.mark.parametrize("architecture", ["topk_crosscoder", "topk_cross_layer_transcoder"])
def test_a_cache_with_a_column_for_each_hook_trains_the_same(
    architecture: str,
    model: Any,
    rows: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_activations_runner, "load_model", lambda *_, **__: model)
    sae = sae_config(architecture)
    names = [name for _, name in (*sae.sites, *getattr(sae, "target_sites", ()))]
    cache = CacheActivationsRunnerConfig(
        dataset_path="", model_name="tiny", model_batch_size=4, hook_name=names[0],
        hook_layer=1,
        hook_names=names[1:], d_in=D_IN, context_size=16, training_tokens=40 * 16,
        new_cached_activations_path=str(tmp_path / "cache"), buffer_size_gb=1e-4, shuffle=False,
        prepend_bos=True, model_from_pretrained_kwargs={},
    )  # fmt: skip
    CacheActivationsRunner(cache, override_dataset=rows).run()
    fields = {"eval_every_n_wandb_logs": 1000, "n_checkpoints": 0, "training_tokens": 32 * 12}
    cached = {"use_cached_activations": True, "cached_activations_path": str(tmp_path / "cache")}
    weights = []
    for name, more in (("live", {}), ("cached", cached)):
        cfg = run_config(tmp_path / name, sae, **fields, **more)
        runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
        weights.append(runner.run().state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor)
    with pytest.raises(ValueError, match="but not 'blocks.0.attn.hook_z'"):
        missing = {"hook_names": [names[0], "blocks.0.attn.hook_z"], "hook_names_out": names[2:]}
        if architecture == "topk_crosscoder":
            del missing["hook_names_out"]
        cfg = run_config(tmp_path / "missing", sae_config(architecture, **missing), **cached)
        SAETrainingRunner(cfg, override_dataset=rows, override_model=model)


def test_the_maps_of_a_whitening_take_memory(tmp_path: Path) -> None:
    for architecture, n_maps in (("crosscoder", 3), ("cross_layer_transcoder", 4)):
        sae = sae_config(architecture, normalize_activations="whitening")
        memory = training_memory(run_config(tmp_path, sae))
        assert memory["whitening"] == n_maps * 2 * 4 * D_IN**2


def test_ordinary_saes_have_ordinary_stores() -> None:
    assert store_class_for(None) is ActivationsStore


# -- runs and evaluations -------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["none", "expected_average_only_in"])
@pytest.mark.parametrize(
    "architecture",
    ["crosscoder", "batchtopk_crosscoder", "jumprelu_cross_layer_transcoder",
     "topk_cross_layer_transcoder", "batchtopk_cross_layer_transcoder"],
)  # fmt: skip
def test_a_run_on_a_language_model(
    architecture: str, normalization: str, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    cfg = run_config(tmp_path, sae_config(architecture, normalize_activations=normalization))
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    weights = sum(parameter.numel() for parameter in runner.sae.parameters())
    assert runner.preflight().memory["cpu"]["SAE"] == 4 * weights
    runner.run()
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [entry["losses/mse_loss"] for entry in logged if "losses/mse_loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    evaluation = next(entry for entry in logged if "by_hook" in entry)
    names = WRITES if "transcoder" in architecture else RESIDUAL
    assert list(evaluation["by_hook"]) == names
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert loaded.cfg.normalize_activations == "none"
    tokens = rows[:]["tokens"]
    target = stacked(model, tokens, names)
    error = loaded(stacked(model, tokens, loaded.cfg.hook_names)) - target
    assert error.pow(2).sum() < (target - target.mean(dim=(0, 1))).pow(2).sum()


@pytest.mark.filterwarnings("ignore:Dataset is not tokenized")
@pytest.mark.parametrize("architecture", ["batchtopk_crosscoder", "topk_cross_layer_transcoder"])
def test_a_few_steps_on_the_embedded_model(architecture: str, tmp_path: Path) -> None:
    layers = range(4)
    hooks: dict[str, Any] = {"hook_names": [f"blocks.{layer}.hook_resid_post" for layer in layers]}
    if "transcoder" in architecture:
        hooks = {
            "hook_names": [f"blocks.{layer}.ln2.hook_normalized" for layer in layers],
            "hook_names_out": [f"blocks.{layer}.hook_mlp_out" for layer in layers],
        }
    sae = sae_config(
        architecture, d_in=128, d_sae=256, normalize_activations="expected_average_only_in", **hooks
    )
    cfg = run_config(
        tmp_path, sae, model_name=EMBEDDED_MODEL_NAME, dataset_path=EMBEDDED_DATASET_NAME,
        context_size=32, training_tokens=128 * 24, train_batch_size_tokens=128, lr=1e-2,
        wandb_log_frequency=1, eval_every_n_wandb_logs=1000, n_checkpoints=0,
    )  # fmt: skip
    SAETrainingRunner(cfg).run()
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    explained = [e["metrics/explained_variance"] for e in logged if "losses/mse_loss" in e]
    assert len(explained) == 24 and sum(explained[-4:]) / 4 > sum(explained[:4]) / 4 + 0.1


def trained(architecture: str, model: Any, rows: Dataset, tmp_path: Path, **fields: Any) -> Any:
    cfg = run_config(
        tmp_path, sae_config(architecture, **fields), eval_every_n_wandb_logs=1000, n_checkpoints=0
    )
    with torch.enable_grad():
        SAETrainingRunner(cfg, override_dataset=rows, override_model=model).run()
    return SAE.load_from_disk(tmp_path / "out").eval()


@torch.no_grad()
def test_a_crosscoder_is_judged_hook_by_hook(model: Any, rows: Dataset, tmp_path: Path) -> None:
    sae = trained("crosscoder", model, rows, tmp_path)
    store = JointActivationsStore.from_sae(
        model, sae, context_size=16, dataset=rows, store_batch_size_prompts=6
    )
    metrics = run_evals(sae, store, model, EVERYTHING).metrics
    tokens = torch.tensor(rows[:6]["tokens"])
    x = stacked(model, tokens, RESIDUAL)
    recons = sae(x)
    plain = model(tokens, return_type="loss")
    changed = []
    for number, name in enumerate(RESIDUAL):
        loss, zeroed = (
            model.run_with_hooks(
                tokens, return_type="loss", fwd_hooks=[(name, lambda old, hook, new=new: new)]
            )
            for new in (recons[..., number, :], torch.zeros_like(recons[..., number, :]))
        )
        changed.append(loss)
        own = metrics["by_hook"][name]
        assert own["ce_loss_with_sae"] == pytest.approx(float(loss), rel=1e-4)
        score = float((zeroed - loss) / (zeroed - plain))
        assert own["ce_loss_score"] == pytest.approx(score, rel=1e-2)
        error = (recons - x)[..., number, :].pow(2).sum()
        spread = (x - x.mean(dim=(0, 1)))[..., number, :].pow(2).sum()
        assert own["explained_variance"] == pytest.approx(float(1 - error / spread), abs=1e-4)
        assert "l0" not in own  # features are of all hooks
    performance = metrics["model_performance_preservation"]
    assert performance["ce_loss_with_sae"] == pytest.approx(sum(map(float, changed)) / 3, rel=1e-4)
    assert performance["ce_loss_without_sae"] == pytest.approx(float(plain), rel=1e-4)
    lines = table_lines({"metrics": metrics})
    assert all(any(line.startswith(name) for line in lines) for name in RESIDUAL)


@torch.no_grad()
def test_a_cross_layer_transcoder_replaces_all_its_mlps(
    model: Any, rows: Dataset, tmp_path: Path
) -> None:
    sae = trained("jumprelu_cross_layer_transcoder", model, rows, tmp_path)
    store = JointActivationsStore.from_sae(
        model, sae, context_size=16, dataset=rows, store_batch_size_prompts=6
    )
    metrics, of_features = run_evals(sae, store, model, EVERYTHING)
    assert {len(values) for values in of_features.values()} == {sae.cfg.d_sae}
    norms = torch.cat([W.norm(dim=0) for W in sae.encoders()])
    assert_close(torch.tensor(of_features["encoder_norm"]), norms)
    tokens = torch.tensor(rows[:6]["tokens"])
    replacement = CrossLayerReplacement(sae)
    loss = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=replacement.hooks())

    def second_mlp(old: Any, hook: Any) -> Any:
        return sae.decode_hook(1, replacement.features)

    first = sae(stacked(model, tokens, READS))[..., 0, :]

    def first_mlp(old: Any, hook: Any) -> Any:
        return first

    # the first layer reads what the model reads; the second what follows from the first's output
    by_hand = model.run_with_hooks(
        tokens, return_type="loss", fwd_hooks=[(WRITES[0], first_mlp), (WRITES[1], second_mlp)]
    )
    assert_close(loss, by_hand)
    assert metrics["model_performance_preservation"]["ce_loss_with_sae"] == pytest.approx(
        float(loss), rel=1e-4
    )
    features = sae.encode(stacked(model, tokens, READS)).unflatten(-1, (2, -1))
    l0 = (features > 0).sum(-1).float().mean(dim=(0, 1))
    for name, own in zip(WRITES, l0.tolist(), strict=True):
        assert metrics["by_hook"][name]["l0"] == pytest.approx(own, rel=1e-4)
        assert "ce_loss_score" not in metrics["by_hook"][name]
    assert metrics["sparsity"]["l0"] == pytest.approx(float(l0.sum()), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["crosscoder", "topk_cross_layer_transcoder"])
def test_scaled_activations_are_judged_like_raw_ones(
    architecture: str, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    scaled = "expected_average_only_in"
    sae: Any = TrainingSAE(
        sae_config(architecture, normalize_activations=scaled, decoder_init_norm=0.5)
    )
    columns = 4 if "transcoder" in architecture else 3
    factors: Any = torch.linspace(0.5, 2, columns).repeat_interleave(D_IN)
    tokens = torch.tensor(rows[:6]["tokens"])
    evaluator = HeldOutEvaluator(tokens, model, eval_config=EVERYTHING)
    in_training = evaluator.evaluate(sae, factors).metrics
    sae.fold_activation_norm_scaling_factor(factors)
    folded = evaluator.evaluate(sae).metrics
    for group in ("model_performance_preservation", "reconstruction_quality", "by_hook"):
        assert json.loads(json.dumps(in_training[group])).keys() == folded[group].keys()
    for group in ("model_performance_preservation", "reconstruction_quality"):
        assert in_training[group] == pytest.approx(folded[group], rel=1e-3, nan_ok=True)


def test_models_that_share_features(model: Any, rows: Dataset, tmp_path: Path) -> None:
    tuned = tiny_model(seed=1)
    hook = "blocks.1.hook_resid_post"
    sae = sae_config("topk_crosscoder", hook_names=[hook], model_names=["tiny", "tuned"])
    cfg = run_config(tmp_path, sae)
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=[model, tuned])
    assert isinstance(runner.model, ModelGroup)
    batch = runner.activations_store.next_batch()
    seen = [stacked(m, rows[:]["tokens"], [hook]).flatten(0, 2) for m in (model, tuned)]
    assert_are_among(batch[:, 0], torch.cat(seen, -1))
    runner.run()
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    by_hook = next(entry["by_hook"] for entry in logged if "by_hook" in entry)
    assert list(by_hook) == [f"tiny:{hook}", f"tuned:{hook}"]
    assert (
        by_hook[f"tiny:{hook}"]["ce_loss_without_sae"]
        != (by_hook[f"tuned:{hook}"]["ce_loss_without_sae"])
    )
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert loaded.cfg.model_names == ["tiny", "tuned"]
    with pytest.raises(ValueError, match="reads 2 models, and 1 are given"):
        splicing_of(loaded, model)


# -- refusals -------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused_before_training(
    model: Any, rows: Dataset, tmp_path: Path
) -> None:
    def start(sae: Any, override_model: Any = model, **fields: Any) -> None:
        cfg = run_config(tmp_path, sae, **fields)
        SAETrainingRunner(cfg, override_dataset=rows, override_model=override_model)

    wide = "blocks.0.mlp.hook_post"
    with pytest.raises(RuntimeError, match=r"resid_pre' 16, 'blocks.0.mlp.hook_post' 64"):
        start(sae_config("crosscoder", hook_names=[RESIDUAL[0], wide]))
    with pytest.raises(ValueError, match=r"different lengths: .*\(1, 2\) at 'blocks.0.attn.hook_p"):
        start(sae_config("crosscoder", hook_names=[RESIDUAL[0], "blocks.0.attn.hook_pattern"]))
    with pytest.raises(ValueError, match="no hook 'blocks.5.hook_resid_pre'"):
        start(sae_config("crosscoder", hook_names=[RESIDUAL[0], "blocks.5.hook_resid_pre"]))
    with pytest.raises(ValueError, match="hooks run in the order"):
        inside = [[f"blocks.{n}.mlp.hook_{at}" for n in range(2)] for at in ("post", "pre")]
        swapped = {"hook_names": inside[0], "hook_names_out": inside[1], "d_in": 64}
        start(sae_config("cross_layer_transcoder", **swapped))
    with pytest.raises(ValueError, match="is not the first of hook_names"):
        start(sae_config("crosscoder"), hook_name=RESIDUAL[1])
    cached = {"use_cached_activations": True, "cached_activations_path": str(tmp_path)}
    with pytest.raises(ValueError, match="of one model"):
        start(sae_config("crosscoder", model_names=["tiny", "b"]), [model, tiny_model()], **cached)
    several = sae_config("crosscoder", model_names=["tiny", "tuned"])
    with pytest.raises(ValueError, match="those of 1 models, and 2 are given"):
        start(sae_config("crosscoder"), [model, tiny_model()])
    with pytest.raises(ValueError, match="is not the first of model_names"):
        start(several, None, model_name="gelu-1l")
    with pytest.raises(ValueError, match="compile_llm is for a run with one"):
        start(several, [model, tiny_model()], compile_llm=True)
    with pytest.raises(ValueError, match="at least two models"):
        start(several, [model])


def test_an_evaluation_loads_all_models_of_a_crosscoder(model: Any) -> None:
    fields = {"hook_names": RESIDUAL[:1], "model_names": ["base", "tuned"]}
    sae = TrainingSAE(sae_config("crosscoder", **fields))
    loaded = {"base": model, "tuned": tiny_model(seed=1)}
    loader = ModelLoader("cpu", lambda kind, name, **_: loaded[name])
    group = loader.for_sae(sae)
    assert group.models == (model, loaded["tuned"]) and loader.for_sae(sae) is group


@pytest.mark.filterwarnings("ignore:Dataset is not tokenized")
@pytest.mark.parametrize(
    "architecture", ["skip_transcoder", "jumprelu_crosscoder", "topk_cross_layer_transcoder"]
)
def test_a_saved_folder_is_evaluated_by_the_command_line(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks: dict[str, Any] = {"hook_names": READS, "hook_names_out": WRITES}
    if architecture == "skip_transcoder":
        hooks = {"hook_name": READS[0], "hook_name_out": WRITES[0]}
    elif architecture == "jumprelu_crosscoder":
        hooks = {"hook_names": READS}
    hooks |= {"k": 4} if "topk" in architecture else {}
    sae: Any = TrainingSAE(
        get_sae_training_class(architecture).config_class(
            d_in=128, d_sae=64, model_name=EMBEDDED_MODEL_NAME, context_size=16,
            dataset_path=EMBEDDED_DATASET_NAME, normalize_activations="layer_norm", **hooks,
        )
    )  # fmt: skip
    sae.save_inference_model(tmp_path / "sae")
    arguments = ["eval", str(tmp_path / "sae"), "--output_dir", str(tmp_path / "out"), "--quiet"]
    batches = ["--n_eval_reconstruction_batches", "1", "--n_eval_sparsity_variance_batches", "1"]
    assert main([*arguments, *batches, "--batch_size_prompts", "2"]) == 0
    table = capsys.readouterr().out
    wanted = {"skip_transcoder": [], "jumprelu_crosscoder": READS}.get(architecture, WRITES)
    assert "ce_loss_with_sae" in table
    assert all(any(line.startswith(name) for line in table.splitlines()) for name in wanted)


def test_models_are_loaded_by_their_names(tmp_path: Path) -> None:
    sae = sae_config("crosscoder", hook_names=RESIDUAL[:1], model_names=["base", "tuned"])
    cfg = LanguageModelSAERunnerConfig(sae=sae, checkpoint_path=str(tmp_path), verbose=False)
    assert cfg.model_name == "base"
    loaded = {"base": tiny_model(), "tuned": tiny_model(seed=1)}
    group = model_for(cfg, None, loaded.__getitem__)
    assert group.models == (loaded["base"], loaded["tuned"])
    assert model_for(cfg, loaded["tuned"], loaded.__getitem__) is loaded["tuned"]


def test_models_that_read_other_tokens_are_refused(model: Any) -> None:
    other = tiny_model()
    other.cfg.d_vocab = 40
    with pytest.raises(ValueError, match=r"vocabulary of 32 tokens, model 2 one of 40"):
        ModelGroup([model, other])

    class Words(WordTokenizer):
        def get_vocab(self) -> dict[str, int]:
            return {word: n for n, word in enumerate(self.vocabulary)}

    first, second = tiny_model(), tiny_model()
    first.tokenizer, second.tokenizer = Words(), Words()  # type: ignore[assignment]
    ModelGroup([first, second])
    second.tokenizer.vocabulary.reverse()
    with pytest.raises(ValueError, match="another tokenizer"):
        ModelGroup([first, second])


def test_every_form_has_a_config() -> None:
    assert len(several_hooks_configs()) == 8
