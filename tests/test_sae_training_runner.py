from __future__ import annotations

import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.sae_training_runner import (
    InterruptedException,
    LanguageModelSAETrainingRunner,
    SAETrainingRunner,
    _parse_cfg_args,
    _run_cli,
    interrupt_callback,
)
from sae_lens.saes import SAE, JumpReLUTrainingSAEConfig, TopKTrainingSAEConfig, TrainingSAE
from sae_lens.saes.normalization import normalize
from sae_lens.training.geometric_median import compute_geometric_median
from sae_lens.training.nonfinite import NonFiniteLossError
from tests.helpers import ARCHITECTURES, D_IN, NORMALIZATIONS, tiny_model

CHECKPOINT_FILES = [
    "activations_store_state.safetensors",
    "cfg.json",
    "resume_state.json",
    "resume_state.safetensors",
    "sae_weights.safetensors",
    "sparsity.safetensors",
]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_dict(
        {"tokens": torch.randint(2, 32, (60, 16), generator=generator).tolist()}
    )


@pytest.fixture
def make_config(tmp_path: Path) -> Any:
    def make(**fields: Any) -> LanguageModelSAERunnerConfig:
        values: dict[str, Any] = {
            "model_name": "tiny", "hook_name": "blocks.1.hook_resid_pre", "d_in": D_IN,
            "d_sae": 32, "context_size": 16, "train_batch_size_tokens": 32,
            "store_batch_size_prompts": 4, "n_batches_in_buffer": 4, "training_tokens": 32 * 16,
            "log_to_wandb": False, "checkpoint_path": str(tmp_path / "checkpoints"),
            "verbose": False, "lr": 1e-2, "model_from_pretrained_kwargs": {},
            "wandb_log_frequency": 2, "eval_every_n_wandb_logs": 4, "n_eval_batches": 1,
        }  # fmt: skip
        if fields.get("architecture") == "topk":
            values["activation_fn_kwargs"] = {"k": 4}
        for given in ("sae", "logger"):
            if given in fields:
                for name in ("d_in", "d_sae") if given == "sae" else ("log_to_wandb",
                             "wandb_log_frequency", "eval_every_n_wandb_logs"):  # fmt: skip
                    values.pop(name)
        return LanguageModelSAERunnerConfig(**{**values, **fields})

    return make


def checkpoints(cfg: LanguageModelSAERunnerConfig) -> list[str]:
    return sorted(path.name for path in Path(cfg.checkpoint_path).iterdir() if path.is_dir())


# -- whole runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_saved_is_what_is_returned(
    architecture: str, normalization: str, make_config: Any, model: Any, rows: Dataset
) -> None:
    cfg = make_config(
        architecture=architecture, normalize_activations=normalization, n_checkpoints=2
    )
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    sae = runner.run().eval()
    assert sae is runner.sae
    assert checkpoints(cfg) == ["288", "final_512"]
    for name in checkpoints(cfg):
        files = sorted(path.name for path in (Path(cfg.checkpoint_path) / name).iterdir())
        assert files == CHECKPOINT_FILES
    final = Path(cfg.checkpoint_path) / "final_512"
    raw = runner.activations_store.get_activations(runner.activations_store.get_batch_tokens(2))
    raw = raw.reshape(-1, D_IN)
    for cls in (SAE, TrainingSAE):
        loaded = cls.load_from_disk(final).eval()
        assert torch.equal(loaded(raw), sae(raw))
    saved = json.loads((final / "cfg.json").read_text())
    scaled = normalization == "expected_average_only_in"
    assert saved["normalize_activations"] == ("none" if scaled else normalization)
    assert saved["training_tokens"] == 512
    midway = load_file(Path(cfg.checkpoint_path) / "288" / CHECKPOINT_FILES[0])
    assert ("estimated_norm_scaling_factor" in midway) == scaled
    assert "estimated_norm_scaling_factor" not in load_file(final / CHECKPOINT_FILES[0])
    # on raw activations it beats the mean by far
    error = (sae(raw) - raw).square().sum()
    assert error < 0.8 * (raw - raw.mean(0)).square().sum()


@pytest.mark.parametrize(
    "sae_config",
    [
        TopKTrainingSAEConfig(d_in=D_IN, d_sae=32, k=4),
        JumpReLUTrainingSAEConfig(
            d_in=D_IN, d_sae=32, l0_coefficient=0.01,
            normalize_activations="expected_average_only_in",
        ),
    ],
    ids=lambda config: str(config.architecture),
)  # fmt: skip
def test_the_later_spelling_with_an_output_folder(
    sae_config: Any, make_config: Any, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    cfg = make_config(
        sae=sae_config,
        logger=LoggingConfig(
            log_to_wandb=False, wandb_log_frequency=2, eval_every_n_wandb_logs=4,
            log_to_jsonl=str(log),
        ),
        output_path=str(tmp_path / "out"),
    )  # fmt: skip
    trained = LanguageModelSAETrainingRunner(cfg, override_dataset=rows, override_model=model).run()
    trained.eval()
    assert trained.form == "v6"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "cfg.json",
        "runner_cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    ]
    out = SAE.load_from_disk(tmp_path / "out").eval()
    x = torch.randn(5, D_IN)
    torch.testing.assert_close(out(x), trained(x))
    nested = json.loads((tmp_path / "out" / "runner_cfg.json").read_text())
    assert nested["sae"]["architecture"] == sae_config.architecture
    again = TrainingSAE.load_from_disk(Path(cfg.checkpoint_path) / "final_512").eval()
    assert again.form == "v6"
    torch.testing.assert_close(again(x), trained(x))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "losses/mse_loss" in line] == list(range(1, 16, 2))
    (first, second) = [line for line in lines if "weights/W_dec_norms" in line]
    assert (first["step"], second["step"]) == (7, 15)
    assert 0 < first["model_performance_preservation"]["ce_loss_with_sae"] < 10


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_evaluations_do_not_change_the_training(
    architecture: str, make_config: Any, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    finals = []
    for log in (None, str(tmp_path / "log.jsonl")):
        cfg = make_config(
            architecture=architecture, log_to_jsonl=log, noise_scale=0.1, wandb_log_frequency=1,
            normalize_activations="expected_average_only_in",
        )  # fmt: skip
        sae = SAETrainingRunner(cfg, override_dataset=rows, override_model=model).run()
        finals.append(sae.W_enc.detach())
    assert (tmp_path / "log.jsonl").read_text().count("ce_loss_score") == 4
    assert torch.equal(*finals)


def test_the_seed_decides(make_config: Any, model: Any, rows: Dataset) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(random.randint(0, 10**6))  # what came before must not matter
        cfg = make_config(seed=seed, noise_scale=0.1)
        runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
        weights.append(runner.run().W_enc.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_numpy_and_python_are_seeded_too(make_config: Any, model: Any, rows: Dataset) -> None:
    drawn = []
    for _ in range(2):
        SAETrainingRunner(make_config(seed=3), override_dataset=rows, override_model=model)
        drawn.append((np.random.rand(), random.random(), torch.rand(()).item()))
    assert drawn[0] == drawn[1]


def test_a_run_from_trained_weights_and_a_given_sae(
    make_config: Any, model: Any, rows: Dataset
) -> None:
    first_cfg = make_config()
    first = SAETrainingRunner(first_cfg, override_dataset=rows, override_model=model).run()
    cfg = make_config(
        from_pretrained_path=str(Path(first_cfg.checkpoint_path) / "final_512"),
        finetuning_method="scale", finetuning_tokens=128,
    )  # fmt: skip
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    assert torch.equal(runner.sae.W_enc, first.W_enc)
    assert torch.equal(runner.sae.b_dec, first.b_dec)
    tuned = runner.run()
    assert not torch.equal(tuned.finetuning_scaling_factor, torch.ones(32))
    folder = Path(cfg.checkpoint_path) / "final_640"
    loaded = TrainingSAE.load_from_disk(folder)
    assert torch.equal(loaded.finetuning_scaling_factor, tuned.finetuning_scaling_factor)
    given = SAETrainingRunner(
        make_config(), override_dataset=rows, override_model=model, override_sae=tuned
    )
    assert given.sae is tuned


def test_overrides_are_pointed_out(
    make_config: Any, model: Any, rows: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        SAETrainingRunner(make_config(), override_dataset=rows, override_model=model)
    assert "a dataset of your own" in caplog.text
    assert "a model of your own" in caplog.text


# -- the start of the decoder bias ----------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("method", ["geometric_median", "mean", "zeros"])
def test_the_bias_starts_in_the_space_of_the_processed_input(
    method: str, normalization: str, make_config: Any, model: Any, rows: Dataset
) -> None:
    cfg = make_config(b_dec_init_method=method, normalize_activations=normalization)
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    store = runner.activations_store
    if method == "zeros":
        assert torch.equal(runner.sae.b_dec, torch.zeros(D_IN))
        return
    sample = store.storage_buffer[:, 0, :]
    if normalization == "expected_average_only_in":
        assert store.estimated_norm_scaling_factor is not None
        assert sample.norm(dim=-1).mean().item() == pytest.approx(D_IN**0.5, rel=0.1)
    sample, _ = normalize(normalization, sample)
    want = sample.mean(0)
    if method == "geometric_median":
        want = compute_geometric_median(sample).median
    torch.testing.assert_close(runner.sae.b_dec.detach(), want, atol=1e-5, rtol=1e-4)


# -- what is refused before training --------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"d_in": 17}, RuntimeError, "17"),
        ({"hook_name": "blocks.1.hook_resid_prr"}, ValueError, "blocks.1.hook_resid_pre"),
        ({"context_size": 64}, ValueError, "64"),
        ({"dataset_path": ""}, ValueError, "dataset"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    fields: dict[str, Any], error: type[Exception], message: str, make_config: Any, model: Any,
    rows: Dataset,
) -> None:  # fmt: skip
    data = None if "dataset_path" in fields else rows
    if "context_size" in fields:
        data = Dataset.from_dict({"tokens": [[3] * 64] * 20})
    with pytest.raises(error, match=message):
        SAETrainingRunner(make_config(**fields), override_dataset=data, override_model=model)


def test_an_unwritable_checkpoint_folder_is_refused_before_anything_is_loaded(
    make_config: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    cfg = make_config(checkpoint_path=str(tmp_path / "file" / "here"), model_name="no such model")
    with pytest.raises(ValueError, match="checkpoint_path"):
        SAETrainingRunner(cfg)


def test_an_sae_of_another_width_is_refused(
    make_config: Any, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    other = TrainingSAE(TopKTrainingSAEConfig(d_in=9, d_sae=18, k=2))
    other.save_model(tmp_path / "other")
    cfg = make_config(from_pretrained_path=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="other has d_in=9"):
        SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    with pytest.raises(ValueError, match="d_in=9"):
        SAETrainingRunner(
            make_config(), override_dataset=rows, override_model=model, override_sae=other
        )


def test_weights_that_are_not_finite_stop_the_run(
    make_config: Any, rows: Dataset, tmp_path: Path
) -> None:
    broken = tiny_model()
    cfg = make_config(b_dec_init_method="zeros", log_to_jsonl=str(tmp_path / "log.jsonl"))
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=broken)
    with torch.no_grad():
        broken.W_E[5] = torch.nan
    with pytest.raises(NonFiniteLossError, match="step 0"):
        runner.run()
    assert checkpoints(cfg) == ["0"]
    assert "NonFiniteLossError" in (tmp_path / "log.jsonl").read_text().splitlines()[-1]


# -- compilation ----------------------------------------------------------------------------------


def test_compiled_parts_are_the_ones_used(
    make_config: Any, model: Any, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Compiled:
        def __init__(self, target: Any):
            self.target = target
            self.n_calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.target, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.n_calls += 1
            return self.target(*args, **kwargs)

    def compile_(target: Any, **options: Any) -> Compiled:
        calls.append((type(target).__name__, options))
        return Compiled(target)

    monkeypatch.setattr(torch, "compile", compile_)
    cfg = make_config(
        compile_llm=True, llm_compilation_mode="reduce-overhead", compile_sae=True,
        sae_compilation_mode="default",
    )  # fmt: skip
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    runner._compile_if_needed()
    assert isinstance(runner.model, Compiled)
    assert runner.activations_store.model is runner.model
    compiled_pass = runner.sae.training_forward_pass
    assert calls == [
        ("HookedTransformer", {"mode": "reduce-overhead"}),
        ("method", {"mode": "default", "backend": "inductor"}),
    ]
    runner.cfg.compile_llm = runner.cfg.compile_sae = False
    sae = runner.run()
    assert compiled_pass.n_calls == 16  # type: ignore[attr-defined]
    pickle.loads(pickle.dumps(sae))  # nothing compiled stays on it


# -- interruptions --------------------------------------------------------------------------------


def test_the_callback_raises() -> None:
    with pytest.raises(InterruptedException, match="2"):
        interrupt_callback(2, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_restores_the_handlers(
    number: signal.Signals, make_config: Any, model: Any, rows: Dataset
) -> None:
    cfg = make_config()
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
    before = signal.getsignal(number)
    real = TrainingSAE.training_forward_pass

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(runner.sae, *args, **kwargs)

    runner.sae.training_forward_pass = interrupted  # type: ignore[method-assign]
    with pytest.raises(InterruptedException, match=number.name):
        runner.run()
    assert checkpoints(cfg) == ["32"]
    assert signal.getsignal(number) is before
    # the step was completed before the run stopped, so weights and counters belong together
    saved = load_file(Path(cfg.checkpoint_path) / "32" / "sae_weights.safetensors")
    assert not torch.equal(saved["b_enc"], torch.zeros(32))


def test_a_signal_outside_a_step_takes_effect_at_once(
    make_config: Any, model: Any, rows: Dataset
) -> None:
    cfg = make_config()
    runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)

    def fit() -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")

    from sae_lens.training.sae_trainer import SAETrainer

    trainer = SAETrainer(model, runner.sae, runner.activations_store, runner.save_checkpoint, cfg)
    trainer.fit = fit  # type: ignore[method-assign]
    with pytest.raises(InterruptedException):
        runner.run_trainer_with_interruption_handling(trainer)
    assert checkpoints(cfg) == ["0"]


def test_runs_in_another_thread_install_no_handlers(
    make_config: Any, model: Any, rows: Dataset
) -> None:
    result: list[Any] = []

    def run() -> None:
        cfg = make_config()
        result.append(SAETrainingRunner(cfg, override_dataset=rows, override_model=model).run())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert isinstance(result[0], TrainingSAE)


_PROCESS = """
    import sys
    import torch
    from datasets import Dataset
    from sae_lens.config import LanguageModelSAERunnerConfig
    from sae_lens.sae_training_runner import InterruptedException, SAETrainingRunner
    from tests.helpers import tiny_model

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, 32, (60, 16), generator=generator).tolist()
    for run in sys.argv[2:]:
        cfg = LanguageModelSAERunnerConfig(
            hook_name="blocks.1.hook_resid_pre", d_in=16, d_sae=32, context_size=16,
            train_batch_size_tokens=32, store_batch_size_prompts=4, n_batches_in_buffer=4,
            training_tokens=10**9, log_to_wandb=False, checkpoint_path=sys.argv[1], wandb_id=run,
            verbose=False, log_to_jsonl=f"{sys.argv[1]}/{run}.jsonl", wandb_log_frequency=1,
            eval_every_n_wandb_logs=10**6, model_from_pretrained_kwargs={},
        )
        try:
            SAETrainingRunner(cfg, Dataset.from_dict({"tokens": rows}), tiny_model()).run()
        except InterruptedException as interruption:
            print(interruption, flush=True)
    sys.exit(7)
"""


def test_a_real_process_stops_on_real_signals(tmp_path: Path, repository: Path) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM]
    names = [number.name for number in numbers]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_PROCESS), str(tmp_path), *names],
        cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for number in numbers:
            log = tmp_path / f"{number.name}.jsonl"
            deadline = time.monotonic() + 120
            while not (log.exists() and log.read_text().count("\n") > 20):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 7, errors
    assert out.split("\n")[:2] == [f"interrupted by {name}" for name in names]
    for name in names:
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "losses/mse_loss" in line]
        (folder,) = (path for path in (tmp_path / name).iterdir() if path.is_dir())
        assert folder.name == str(steps[-1]["details/n_training_tokens"])
        assert sorted(path.name for path in folder.iterdir()) == CHECKPOINT_FILES
        loaded = TrainingSAE.load_from_disk(folder)
        assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())
        assert lines[-1]["error"].startswith("InterruptedException")


# -- W&B ------------------------------------------------------------------------------------------


def test_wandb_gets_what_the_config_says(
    make_config: Any, model: Any, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls; that W&B understands them is tested with the logger."""
    import wandb

    calls: list[tuple[str, Any]] = []

    class Artifact:
        def __init__(self, name: str, type: str, metadata: Any):
            self.name, self.type, self.metadata, self.files = name, type, metadata, []

        def add_file(self, path: str) -> None:
            assert Path(path).is_file()
            self.files.append(Path(path).name)

    monkeypatch.setattr(wandb, "init", lambda **fields: calls.append(("init", fields)))
    monkeypatch.setattr(wandb, "log", lambda values, step: calls.append(("log", (step, values))))
    monkeypatch.setattr(wandb, "Artifact", Artifact)
    monkeypatch.setattr(
        wandb, "log_artifact", lambda artifact, aliases: calls.append(("file", (artifact, aliases)))
    )
    monkeypatch.setattr(wandb, "finish", lambda: calls.append(("finish", None)))
    cfg = make_config(
        log_to_wandb=True, wandb_id="abc", wandb_project="p", wandb_entity="e", run_name="r",
        n_checkpoints=2, feature_sampling_window=8, log_optimizer_state_to_wandb=True,
        log_activations_store_to_wandb=True,
    )  # fmt: skip
    SAETrainingRunner(cfg, override_dataset=rows, override_model=model).run()
    kinds = [kind for kind, _ in calls]
    assert (kinds[0], kinds[-1]) == ("init", "finish")
    opened = calls[0][1]
    assert {k: opened[k] for k in ("project", "entity", "name", "id")} == {
        "project": "p", "entity": "e", "name": "r", "id": "abc",
    }  # fmt: skip
    assert opened["config"]["d_in"] == D_IN
    logs = [value for kind, value in calls if kind == "log"]
    assert [step for step, values in logs if "plots/feature_density_line_chart" in values] == [
        7,
        15,
    ]
    assert isinstance(logs[0][1]["losses/overall_loss"], float)
    evaluations = [values for _, values in logs if "weights/W_dec_norms" in values]
    assert len(evaluations) == 2
    assert isinstance(evaluations[0]["weights/W_dec_norms"], wandb.Histogram)
    assert "ce_loss_score" in evaluations[0]["model_performance_preservation"]
    files = [value for kind, value in calls if kind == "file"]
    name = "sae_tiny_blocks.1.hook_resid_pre_32"
    assert [(artifact.name, artifact.type) for artifact, _ in files[:4]] == [
        (name, "model"),
        (f"{name}_log_feature_sparsity", "log_feature_sparsity"),
        (f"{name}_activations_store", "activations_store"),
        (f"{name}_optimizer_state", "optimizer_state"),
    ]
    assert files[0][0].files == ["sae_weights.safetensors", "cfg.json"]
    assert [aliases for _, aliases in files] == [None] * 4 + [["final_model"]] * 4


# -- command line ---------------------------------------------------------------------------------


def test_arguments_become_a_config() -> None:
    cfg = _parse_cfg_args(
        ["--model_name", "m", "--d_in", "16", "--expansion_factor", "8", "--normalize_sae_decoder",
         "False", "--activation_fn_kwargs", '{"a": 1}', "--verbose", "false"]
    )  # fmt: skip
    assert (cfg.model_name, cfg.d_sae, cfg.normalize_sae_decoder) == ("m", 128, False)
    assert cfg.activation_fn_kwargs == {"a": 1}
    with pytest.raises(ValueError, match="'middle'"):
        _parse_cfg_args(["--b_dec_init_method", "middle"])


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        _parse_cfg_args([])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "--train_batch_size_tokens" in printed
    assert "--config FILE" in printed


def test_the_command_line_runs(
    make_config: Any, model: Any, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.save_to_disk(str(tmp_path / "rows"))
    monkeypatch.setattr("sae_lens.sae_training_runner.load_model", lambda *_, **__: model)
    file = tmp_path / "run.yaml"
    file.write_text(
        "hook_name: blocks.1.hook_resid_pre\nd_in: 16\nd_sae: 32\ncontext_size: 16\n"
        "train_batch_size_tokens: 32\nstore_batch_size_prompts: 4\nn_batches_in_buffer: 4\n"
        "log_to_wandb: false\nverbose: false\nmodel_from_pretrained_kwargs: {}\n"
    )
    _run_cli(
        ["--config", str(file), "--training_tokens", "128", "--wandb_id", "run", "--streaming",
         "false", "--dataset_path", str(tmp_path / "rows"), "--checkpoint_path", str(tmp_path)]
    )  # fmt: skip
    assert (tmp_path / "run" / "final_128" / "cfg.json").is_file()
