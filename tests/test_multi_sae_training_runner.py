"""Several SAEs in one pass over the language model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import sae_lens
from sae_lens.activations import model_adapters, multi_hook
from sae_lens.activations.multi_hook import HookView, MultiHookStore
from sae_lens.activations.reading import HookSite, Reading, reading_of
from sae_lens.config import LoggingConfig, MultiSAETrainingRunnerConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner
from sae_lens.sae_training_runner import InterruptedException, SAETrainingRunner
from sae_lens.saes import (
    SAE,
    GatedTrainingSAEConfig,
    JumpReLUCrossLayerTranscoderTrainingConfig,
    JumpReLUTrainingSAEConfig,
    SkipTranscoderTrainingConfig,
    StandardTrainingSAEConfig,
    TopKCrosscoderTrainingConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.training.features import TargetL0, TrainingFeatures
from sae_lens.training.nonfinite import NonFiniteLossError
from tests.activations.fakes import make_store
from tests.helpers import D_IN, assert_close, flat_config_dict, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")

SCALED = "expected_average_only_in"
RESID, MLP, HEADS = "blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.attn.hook_z"
READS = [f"blocks.{layer}.ln2.hook_normalized" for layer in range(2)]
WRITES = [f"blocks.{layer}.hook_mlp_out" for layer in range(2)]
WIDE = "blocks.0.mlp.hook_post"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_dict(
        {"tokens": torch.randint(2, 32, (60, 16), generator=generator).tolist()}
    )


def saes() -> dict[str, Any]:
    return {
        "topk": TopKTrainingSAEConfig(d_in=D_IN, d_sae=32, k=4),
        "jumprelu": JumpReLUTrainingSAEConfig(
            d_in=D_IN, d_sae=24, normalize_activations=SCALED, l0_coefficient=0.1
        ),
        "wide": StandardTrainingSAEConfig(
            d_in=D_IN, d_sae=64, normalize_activations="whitening", l1_coefficient=0.1
        ),
        "head": GatedTrainingSAEConfig(
            d_in=D_IN // 2, d_sae=16, normalize_activations=SCALED, l1_coefficient=0.1
        ),
        "mlp": SkipTranscoderTrainingConfig(
            d_in=D_IN, d_out=4 * D_IN, d_sae=24, hook_name_out=WIDE, normalize_activations=SCALED,
            l1_coefficient=0.1,
        ),
        "shared": TopKCrosscoderTrainingConfig(
            d_in=D_IN, d_sae=24, k=4, hook_names=[RESID, MLP], normalize_activations=SCALED
        ),
        "layers": JumpReLUCrossLayerTranscoderTrainingConfig(
            d_in=D_IN, d_sae=24, hook_names=READS, hook_names_out=WRITES,
            normalize_activations="whitening",
        ),
    }  # fmt: skip


# The last two name their hooks themselves.
HOOKS = {"topk": RESID, "jumprelu": RESID, "wide": MLP, "head": HEADS, "mlp": READS[0]}
ALL_HOOKS = {*HOOKS.values(), WIDE, *READS, *WRITES}


def several_models() -> Any:
    return TopKCrosscoderTrainingConfig(
        d_in=D_IN, d_sae=24, k=4, hook_names=[RESID], model_names=["tiny", "tuned"]
    )


@pytest.fixture
def make_config(tmp_path: Path) -> Any:
    def make(**fields: Any) -> MultiSAETrainingRunnerConfig:
        values: dict[str, Any] = {
            "saes": saes(), "hook_names": HOOKS, "hook_head_indices": {"head": 1},
            "model_name": "tiny", "context_size": 16, "train_batch_size_tokens": 32,
            "store_batch_size_prompts": 4, "n_batches_in_buffer": 4, "training_tokens": 32 * 12,
            "checkpoint_path": str(tmp_path / "checkpoints"), "lr": 1e-2, "verbose": False,
            "n_eval_batches": 1, "n_batches_for_norm_estimate": 3, "n_checkpoints": 2,
            "logger": LoggingConfig(log_to_wandb=False), "model_from_pretrained_kwargs": {},
        }  # fmt: skip
        return MultiSAETrainingRunnerConfig(**{**values, **fields})

    return make


def train(cfg: Any, rows: Any, model: Any, **overrides: Any) -> MultiSAETrainingRunner:
    runner = MultiSAETrainingRunner(cfg, rows, model, **overrides)
    assert runner.run() == runner.saes
    return runner


@pytest.mark.parametrize("prefetch", [False, True])
def test_each_sae_has_the_weights_of_a_run_of_its_own(
    prefetch: bool, make_config: Any, model: Any, rows: Dataset
) -> None:
    cfg = make_config(prefetch_llm_batches=prefetch)
    runner = train(cfg, rows, model)
    assert list(runner.saes) == list(saes())
    for name, sae in runner.saes.items():
        single = cfg.runner_config(name)
        single.checkpoint_path += "-alone"
        alone = SAETrainingRunner(single, rows, model).run()
        assert type(sae) is type(alone)
        for key, value in alone.state_dict().items():
            assert torch.equal(sae.state_dict()[key], value), (name, key)


def test_noise_is_that_of_a_run_of_its_own(make_config: Any, model: Any, rows: Dataset) -> None:
    noisy = {
        name: StandardTrainingSAEConfig(d_in=D_IN, d_sae=24, noise_scale=scale)
        for name, scale in (("a", 0.3), ("b", 0.1))
    }
    cfg = make_config(saes=noisy, hook_names=RESID, hook_head_indices=None)
    before = torch.get_rng_state()
    runner = train(cfg, rows, model)
    assert torch.equal(torch.get_rng_state(), before)
    for name, sae in runner.saes.items():
        single = cfg.runner_config(name)
        single.checkpoint_path += "-alone"
        assert torch.equal(sae.W_enc, SAETrainingRunner(single, rows, model).run().W_enc)


FEATURES: dict[str, Any] = {
    "topk": {"k_schedule": {"initial_k": 9, "steps": 0.5}, "weight_average": {"decay": 0.5}},
    "jumprelu": TrainingFeatures(target_l0=TargetL0(4.0), jumprelu_lr_factor=0.5),
    "shared": {"norm_filter": {"multiple": 1.1}},
    "wide": {
        "norm_filter": {"multiple": 1.1},
        "initial_weights": {"decoder_bound": 1.0, "search_decoder_norm": True},
        "lr_schedule": {"warm_up_steps": 0.5},
    },
}


def test_training_features_are_those_of_runs_of_their_own(
    make_config: Any, model: Any, rows: Dataset
) -> None:
    cfg = make_config(features=FEATURES)
    json.dumps(cfg.to_dict()["features"])
    plain = train(make_config(), rows, model).saes
    runner = train(cfg, rows, model)
    for name, sae in runner.saes.items():
        single = cfg.runner_config(name)
        assert (single.features is None) == (name not in FEATURES)
        single.checkpoint_path += "-alone"
        alone = SAETrainingRunner(single, rows, model).run()
        for key, value in alone.state_dict().items():
            assert torch.equal(sae.state_dict()[key], value), (name, key)
        assert torch.equal(sae.W_dec, plain[name].W_dec) == (name not in FEATURES)


def test_flat_configs_start_at_the_median_of_the_activations(
    make_config: Any, model: Any, rows: Dataset
) -> None:
    flat = {
        kind: TrainingSAEConfig.from_dict(
            flat_config_dict(normalize_activations=kind, hook_name=MLP, context_size=16)
        )
        for kind in ("none", "layer_norm", "whitening", SCALED)
    }
    cfg = make_config(saes=flat, hook_names=MLP, hook_head_indices=None)
    runner = train(cfg, rows, model)
    for name, sae in runner.saes.items():
        single = cfg.runner_config(name)
        assert single.b_dec_init_method == "geometric_median"
        single.checkpoint_path += "-alone"
        alone = SAETrainingRunner(single, rows, model).run()
        assert torch.equal(sae.b_dec, alone.b_dec), name


def test_the_model_runs_once_per_batch(
    make_config: Any, model: Any, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    read = model_adapters.activations_at_hooks

    def counting(model: Any, tokens: torch.Tensor, hooks: Any, *args: Any, **kwargs: Any) -> Any:
        assert sorted(hooks) == sorted(ALL_HOOKS)
        seen.append(tokens)
        return read(model, tokens, hooks, *args, **kwargs)

    monkeypatch.setattr(multi_hook, "activations_at_hooks", counting)
    forward: list[int] = []
    handle = model.embed.register_forward_hook(lambda *_: forward.append(1))
    cfg = make_config()
    runner = MultiSAETrainingRunner(cfg, rows, model)
    try:
        runner.run()
    finally:
        handle.remove()
    # Where there are inputs and outputs, a prompt more tells which comes first.
    assert len(forward) == len(seen) + 2
    assert [tuple(check.shape) for check in seen[:2]] == [(1, 1), (1, 16)]
    # Three batches of four prompts are read for the scaling factors, and again for covariances;
    # each time the data begin again: the buffer of four is filled, and half of it is refilled until
    # 12 batches of 32 rows are served.
    factors, covariances, training = seen[2:6], seen[6:10], seen[10:]
    assert torch.equal(torch.cat(factors), torch.cat(training[:4]))
    assert torch.equal(torch.cat(covariances), torch.cat(training[:4]))
    got = torch.cat(training).tolist()
    assert got == rows["tokens"][: len(got)]
    assert 12 * 32 <= len(got) * 16 <= 12 * 32 + 4 * 64


def test_each_has_its_own_folder_logs_and_output(
    make_config: Any, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    cfg = make_config(
        output_path=str(tmp_path / "out"),
        logger=LoggingConfig(
            log_to_wandb=False, log_to_jsonl=str(tmp_path / "log.jsonl"), wandb_log_frequency=4,
            eval_every_n_wandb_logs=2, wandb_id="run",
        ),
    )  # fmt: skip
    runner = train(cfg, rows, model)
    folder = tmp_path / "checkpoints" / "run"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*saes(), "together"])
    raw = runner.activations_store.get_activations(torch.randint(2, 32, (2, 16)))
    for name, sae in runner.saes.items():
        assert {"224", "final_384"} <= {path.name for path in (folder / name).iterdir()}
        reading = reading_of(cfg.runner_config(name))
        own = runner.activations_store.rows_of(reading, raw).flatten(0, 2)
        own = own[:, : sum(reading.widths[: reading.n_read])]
        for path in (folder / name / "final_384", tmp_path / "out" / name):
            loaded = SAE.load_from_disk(path)
            assert_close(loaded.eval()(own), sae.eval()(own))
        saved = json.loads((folder / name / "final_384" / "cfg.json").read_text())
        if name in ("topk", "jumprelu", "wide", "head"):
            assert (saved["hook_name"], saved["d_sae"]) == (HOOKS[name], sae.cfg.d_sae)
            assert saved["hook_head_index"] == (1 if name == "head" else None)
        else:
            assert saved["metadata"]["hook_name"] == reading.sites[0].hook_name
            for field in ("hook_names", "hook_names_out"):
                assert saved.get(field) == getattr(saes()[name], field, None)
        text = (tmp_path / f"log-{name}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["step"] for line in lines if "losses/mse_loss" in line] == [3, 7, 11]
        evaluations = [line for line in lines if "model_performance_preservation" in line]
        assert [line["step"] for line in evaluations] == [7]


def test_wandb_has_one_run_with_a_prefix_for_each(
    make_config: Any, model: Any, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    calls: list[tuple[str, Any]] = []
    for name in ("init", "finish"):
        monkeypatch.setattr(wandb, name, lambda *a, _name=name, **k: calls.append((_name, k)))
    monkeypatch.setattr(wandb, "log", lambda values, step: calls.append(("log", (step, values))))
    monkeypatch.setattr(
        wandb, "log_artifact", lambda artifact, aliases=None: calls.append(("art", artifact.name))
    )
    logging = LoggingConfig(wandb_log_frequency=6, run_name="two", log_weights_to_wandb=True)
    both = {name: saes()[name] for name in ("topk", "wide")}
    hooks = {name: HOOKS[name] for name in both}
    cfg = make_config(saes=both, hook_names=hooks, hook_head_indices=None, logger=logging,
                      n_checkpoints=0)  # fmt: skip
    train(cfg, rows, model)
    assert [name for name, _ in calls if name in ("init", "finish")] == ["init", "finish"]
    assert calls[0][1]["name"] == "two"
    logged = [value for name, value in calls if name == "log"]
    for name in both:
        assert [step for step, values in logged if f"{name}/losses/mse_loss" in values] == [5, 11]
    assert all(key.startswith(("topk/", "wide/")) for _, values in logged for key in values)
    artifacts = {str(value).split("__")[0] for name, value in calls if name == "art"}
    assert artifacts == {"topk", "wide"}


def test_saes_and_an_evaluator_of_ones_own(make_config: Any, model: Any, rows: Dataset) -> None:
    seen: list[tuple[Any, tuple[int, ...]]] = []

    def evaluator(sae: Any, data_provider: Any, scaler: Any) -> dict[str, float]:
        stream = data_provider.evaluation_stream()
        seen.append((sae, scaler.scale(stream.get_activations(stream.get_batch_tokens(1))).shape))
        return {"mine": 1.0}

    own = TrainingSAE(saes()["wide"])
    cfg = make_config(
        evaluator=evaluator,
        logger=LoggingConfig(
            log_to_wandb=False, wandb_log_frequency=4, eval_every_n_wandb_logs=3,
            log_to_jsonl=str(Path(make_config().checkpoint_path) / "log.jsonl"),
        ),
    )  # fmt: skip
    runner = train(cfg, rows, model, override_saes={"wide": own})
    assert runner.saes["wide"] is own
    widths = [sum(getattr(sae, "activation_widths", (sae.cfg.d_in,))) for sae, _ in seen]
    assert [shape for _, shape in seen] == [(1, 16, 1, width) for width in widths]
    white = {type(runner.saes[name]) for name in ("wide", "layers")}  # seen as they are saved
    others = [sae for sae in runner.saes.values() if type(sae) not in white]
    assert [sae for sae, _ in seen if type(sae) not in white] == others
    assert "evaluator" in cfg.to_dict()


def test_a_signal_takes_effect_when_all_have_made_the_step(
    make_config: Any, model: Any, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    from sae_lens.training.trainer import SAETrainer

    step = SAETrainer._train_step

    def interrupted(self: Any, sae: Any, sae_in: Any) -> Any:
        steps.append(sae)
        if len(steps) == 2 * len(saes()) + 2:  # the second SAE in the third step
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, sae, sae_in)

    monkeypatch.setattr(SAETrainer, "_train_step", interrupted)
    cfg = make_config(n_checkpoints=0)
    runner = MultiSAETrainingRunner(cfg, rows, model)
    with pytest.raises(InterruptedException, match="SIGTERM"):
        runner.run()
    assert len(steps) == 3 * len(saes())
    for name in saes():
        assert (Path(cfg.checkpoint_path) / name / "96" / "sae_weights.safetensors").exists()


def test_a_loss_that_is_not_finite_saves_all(make_config: Any, model: Any, rows: Dataset) -> None:
    cfg = make_config(n_checkpoints=0)
    runner = MultiSAETrainingRunner(cfg, rows, model)
    with torch.no_grad():
        runner.saes["wide"].b_enc.fill_(torch.inf)
    with pytest.raises(NonFiniteLossError):
        runner.run()
    saved = {name: os.listdir(Path(cfg.checkpoint_path) / name) for name in saes()}
    assert all(any(entry.isdecimal() for entry in entries) for entries in saved.values())


class TestConfig:
    def test_one_hook_for_all(self, make_config: Any) -> None:
        own = saes()
        some = {name: own[name] for name in ("topk", "wide", "layers")}
        cfg = make_config(saes=some, hook_names=RESID, hook_head_indices=0)
        assert cfg.hook_names_per_sae == {"topk": RESID, "wide": RESID, "layers": READS[0]}
        assert cfg.hook_head_indices_per_sae == {"topk": 0, "wide": 0, "layers": None}

    def test_saes_that_name_their_hooks_need_no_others(self, make_config: Any) -> None:
        some = {name: saes()[name] for name in ("shared", "layers", "mlp")}
        with pytest.raises(ValueError, match=r"missing are \['mlp'\]"):
            make_config(saes=some, hook_names={}, hook_head_indices=None)
        some["mlp"].hook_name = READS[0]
        cfg = make_config(saes=some, hook_names={}, hook_head_indices=None)
        assert cfg.hook_names_per_sae == {"shared": RESID, "layers": READS[0], "mlp": READS[0]}
        assert cfg.runner_config("mlp").hook_name == READS[0]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"saes": {}}, "saes is empty"),
            ({"saes": {"a/b": saes()["topk"]}}, "'a/b' cannot be the name"),
            ({"saes": {"..": saes()["topk"]}}, "cannot be the name"),
            ({"hook_names": {"topk": RESID}}, "missing are .*'head'.*unknown"),
            ({"hook_head_indices": {"other": 1}}, r"unknown \['other'\]"),
            (
                {"hook_names": {**HOOKS, "shared": MLP}},
                "gives 'shared' .*names its hooks",
            ),
            (
                {"hook_head_indices": {"layers": 1}},
                "gives 'layers' 1, but",
            ),
            ({"hook_head_indices": {"mlp": 1}}, "a skip_transcoder reads whole hooks"),
            ({"hook_names": {**HOOKS, "mlp": WRITES[0]}}, "input has to come first"),
            (
                {"saes": {"both": several_models()}},
                "'both' is of several models",
            ),
            ({"use_chat_formatting": True}, "use_chat_formatting"),
            ({"sequence_separator_token": "eos"}, "only 'bos'"),
            ({"saes": {"together": saes()["topk"]}}, "it is the folder from which runs go on"),
            ({"checkpoint_path": None}, "checkpoint_path is empty"),
            ({"features": {"other": {}}}, "features names other, but there are the SAEs topk"),
            ({"features": {"topk": {"target_l0": {"target": 0}}}}, "must be above 0"),
            ({"n_batches_in_buffer": 1}, "n_batches_in_buffer is 1"),
        ],
    )
    def test_what_is_refused(self, fields: dict[str, Any], message: str, make_config: Any) -> None:
        with pytest.raises(ValueError, match=message):
            make_config(**fields)

    def test_prefetching_is_counted_in_batches_of_the_model(self, make_config: Any) -> None:
        # a batch of the model gives 64 rows: two batches of training
        assert make_config(prefetch_llm_batches=3).prefetch_batches == 6
        assert make_config(prefetch_llm_batches=True).prefetch_batches == 4
        assert make_config().prefetch_batches == 0

    def test_names_are_at_the_root(self) -> None:
        assert sae_lens.MultiSAETrainingRunner is MultiSAETrainingRunner
        assert sae_lens.MultiSAETrainingRunnerConfig is MultiSAETrainingRunnerConfig

    def test_unknown_overrides_and_widths(self, make_config: Any, model: Any, rows: Any) -> None:
        with pytest.raises(ValueError, match=r"override_saes names \['other'\]"):
            MultiSAETrainingRunner(
                make_config(), rows, model, {"other": TrainingSAE(saes()["topk"])}
            )
        with pytest.raises(RuntimeError, match=f"d_in is {D_IN}, but .*'{HEADS}'.* width of 8"):
            cfg = make_config(saes={"topk": saes()["topk"]}, hook_names=HEADS, hook_head_indices=1)
            MultiSAETrainingRunner(cfg, rows, model)
        with pytest.raises(ValueError, match="no hook 'blocks.0.hook_mlp_oot'"):
            cfg = make_config(hook_names={**HOOKS, "wide": "blocks.0.hook_mlp_oot"})
            MultiSAETrainingRunner(cfg, rows, model)
        with pytest.raises(ValueError, match="on one language model"):
            MultiSAETrainingRunner(make_config(), rows, [model, model])

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            ({"d_out": 7}, RuntimeError, "d_out is 7, but .*hook_post' have a width of 64"),
            ({"hook_name": RESID, "hook_name_out": "blocks.1.attn.hook_pattern"},
             ValueError, "different lengths"),
            ({"hook_name": WIDE, "hook_name_out": "blocks.0.mlp.hook_pre", "d_in": 64},
             ValueError, "runs before hook_name"),
        ],
    )  # fmt: skip
    def test_what_the_model_does_not_have(
        self, fields: dict[str, Any], error: Any, message: str, make_config: Any, model: Any,
        rows: Any,
    ) -> None:  # fmt: skip
        values = {"d_in": D_IN, "d_out": 64, "d_sae": 24, "hook_name_out": WIDE, **fields}
        hook = values.pop("hook_name", READS[0])
        cfg = make_config(
            saes={"mlp": SkipTranscoderTrainingConfig(**values)}, hook_names=hook,
            hook_head_indices=None,
        )  # fmt: skip
        with pytest.raises(error, match=message):
            MultiSAETrainingRunner(cfg, rows, model)


class TestViews:
    def make(self, model: Any, rows: Any, **fields: Any) -> tuple[MultiHookStore, list[HookView]]:
        template = make_store(model, rows, d_in=D_IN, context_size=16, n_batches_in_buffer=4)
        names = (
            "streaming", "context_size", "n_batches_in_buffer", "store_batch_size_prompts",
            "train_batch_size_tokens", "prepend_bos", "device", "seed",
        )  # fmt: skip
        settings = {name: getattr(template, name) for name in names}
        sites = [HookSite(RESID, None, D_IN), HookSite(HEADS, 0, D_IN // 2)]
        sites = [Reading((site,)) for site in sites] + [Reading(tuple(sites[:1] * 2), 2)]
        shared = MultiHookStore(
            model, sites, dataset=rows, dtype="float32", total_training_tokens=10,
            n_batches_for_norm_estimate=2, **settings, **fields,
        )  # fmt: skip
        kinds = ("none", SCALED, SCALED)
        return shared, [
            HookView(shared, site, kind) for site, kind in zip(sites, kinds, strict=True)
        ]

    @pytest.mark.parametrize("prefetch", [0, 3])
    def test_a_saved_view_is_the_state_of_a_store_of_its_own(
        self, prefetch: int, model: Any, rows: Any, tmp_path: Path
    ) -> None:
        shared, views = self.make(model, rows, prefetch_batches=prefetch)
        for view in views:
            view.set_norm_scaling_factor_if_needed()
        for view in views * 5:
            view.next_batch()
        views[0].next_batch()  # the others are a batch behind
        stores = []
        for number, view in enumerate(views):
            view.save(tmp_path / str(number))
            stores.append(shared.single_store(view.reading, view.normalize_activations))
            stores[-1].load(tmp_path / str(number))
        expected = [[], [views[1].next_batch()], [views[2].next_batch()]]
        for _ in range(9):
            for batches, view in zip(expected, views, strict=True):
                batches.append(view.next_batch())
        shared.pause_prefetching()  # the stores use the same model
        for store, batches in zip(stores, expected, strict=True):
            assert all(torch.equal(store.next_batch(), batch) for batch in batches)

    def test_they_stay_side_by_side(self, model: Any, rows: Any) -> None:
        _, (first, second, _) = self.make(model, rows)
        first.next_batch()
        first.next_batch()
        with pytest.raises(ValueError, match="Batch 0 is asked for after batch 1.*side by side"):
            second.next_batch()

    def test_caches_are_of_one_hook(self, model: Any) -> None:
        with pytest.raises(ValueError, match="cached activations, which are of one hook"):
            MultiHookStore(model, [], cached_activations_path="somewhere")
