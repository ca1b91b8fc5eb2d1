from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset

from sae_lens.activations.model_loading import load_model
from sae_lens.activations.store import ActivationsStore
from sae_lens.cli.main import main
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME
from sae_lens.preflight import PreflightError, preflight
from tests.helpers import tiny_model
from tests.runs import BATCH, make_runner, run_config, token_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:Dataset is not tokenized"),
    pytest.mark.filterwarnings("ignore:All samples in the training dataset"),
]

EMBEDDED: dict[str, Any] = {
    "model_name": EMBEDDED_MODEL_NAME, "dataset_path": EMBEDDED_DATASET_NAME,
    "hook_name": "blocks.2.hook_resid_pre", "d_in": 128, "expansion_factor": 2,
    "context_size": 32, "training_tokens": 4096, "train_batch_size_tokens": 128,
    "store_batch_size_prompts": 8, "n_batches_in_buffer": 4, "log_to_wandb": False,
    "verbose": False,
}  # fmt: skip


def embedded_config(folder: Path, **fields: Any) -> LanguageModelSAERunnerConfig:
    return LanguageModelSAERunnerConfig(
        **{**EMBEDDED, "checkpoint_path": str(folder / "runs"), **fields}
    )


def test_a_report_says_what_the_run_will_need(tmp_path: Path) -> None:
    runner = make_runner(run_config(tmp_path, n_checkpoints=4, output_path=str(tmp_path / "out")))
    before = runner.activations_store.n_dataset_processed
    report = runner.preflight()
    assert runner.activations_store.n_dataset_processed == before
    assert (report.n_steps, report.n_tokens) == (30, 30 * BATCH)
    assert report.n_passes == pytest.approx(30 * BATCH / (40 * 16))
    weights = sum(p.numel() * 4 for p in runner.sae.parameters())
    assert report.memory["cpu"]["SAE"] == weights
    assert report.memory["cpu"]["buffer"] == 4 * 4 * 16 * 16 * 4
    assert report.samples[0] == " ".join(map(str, token_rows()[0]))
    assert "3 checkpoints on the way" in report.disk
    assert any("passed over 1.5 times" in text for text in report.warnings)
    assert not (tmp_path / "out").exists()
    runner.run()
    written = sum(f.stat().st_size for f in (tmp_path / "run").rglob("*.safetensors"))
    assert written == pytest.approx(sum(report.disk.values()), rel=0.3)


def test_samples_are_decoded_and_bos_is_compared(tmp_path: Path) -> None:
    report = preflight(embedded_config(tmp_path))
    assert report.problems == []
    assert len(report.samples) == 3
    assert all(len(sample) > 20 for sample in report.samples)
    assert report.n_passes is not None and 0 < report.n_passes < 1
    rows = Dataset.from_dict({"tokens": [[5] * 32] * 200})
    cfg = embedded_config(tmp_path)
    model = load_model("HookedTransformer", EMBEDDED_MODEL_NAME, "cpu")
    store = ActivationsStore.from_config(model, cfg, override_dataset=rows)
    (warning,) = preflight(cfg, model, store).warnings
    assert "prepend_bos is true" in warning
    bos: Any = model.tokenizer.bos_token_id  # type: ignore[union-attr]
    with_bos = Dataset.from_dict({"tokens": [[bos, *[5] * 31]] * 200})
    without = embedded_config(tmp_path, prepend_bos=False)
    store = ActivationsStore.from_config(model, without, override_dataset=with_bos)
    (warning,) = preflight(without, model, store).warnings
    assert "prepend_bos is false" in warning


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_sae": 10**12, "expansion_factor": None}, "Memory on cpu"),
        ({"n_checkpoints": 10**8, "training_tokens": 10**12}, "Disk at"),
        ({"hook_name": "blocks.2.hook_resid_prr"}, "hook_resid_pre"),
        ({"d_in": 64}, "d_in"),
        ({"training_tokens": 1}, "less than one batch"),
        ({"checkpoint_path": "/proc/nowhere"}, "/proc/nowhere"),
        ({"dataset_path": "/nowhere/at/all"}, "nowhere"),
        ({"model_name": "no-such-model"}, "no-such-model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    report = preflight(embedded_config(tmp_path, **fields))
    assert any(message in problem for problem in report.problems), report.problems
    with pytest.raises(PreflightError, match="cannot work"):
        report.raise_problems()


def test_ids_that_the_model_does_not_know_are_a_problem(tmp_path: Path) -> None:
    model = tiny_model()
    cfg = run_config(tmp_path)
    rows = Dataset.from_dict({"tokens": [[40] * 16] * 60})
    store = ActivationsStore.from_config(model, cfg, override_dataset=rows)
    (problem,) = preflight(cfg, model, store).problems
    assert "token id 40" in problem


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**EMBEDDED, "checkpoint_path": str(tmp_path / "runs")}))
    assert main(["check", "--config", str(path)]) == 0
    text = capsys.readouterr().out
    assert "32 steps on 4096 tokens" in text
    assert "memory on cpu" in text and "sample 3" in text
    assert not (tmp_path / "runs").exists()
    assert main(["check", "--config", str(path), "--d_in", "64"]) == 1
    assert "problem: " in capsys.readouterr().out


_MEASURE = """
    import gc, json, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    torch.set_num_threads(1)
    from datasets import Dataset
    from sae_lens.registry import get_sae_training_class
    from sae_lens.sae_training_runner import SAETrainingRunner
    from tests.helpers import tiny_model
    from tests.runs import run_config, token_rows

    LATER = ("batchtopk", "matryoshka_batchtopk")

    def status(name):
        lines = open("/proc/self/status").read().splitlines()
        return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(name))

    def run(folder, **fields):
        width, architecture = fields["d_in"], fields["architecture"]
        if architecture in LATER:
            options = {name: fields.pop(name) for name in ("d_in", "d_sae", "k")}
            if "matryoshka" in architecture:
                options["matryoshka_widths"] = [options["d_sae"] // n for n in (8, 2)]
            fields["sae"] = get_sae_training_class(fields.pop("architecture"))[1](**options)
            fields["architecture"] = "batchtopk"
        else:
            fields.pop("k")
            fields["noise_scale"] = 0.0
        cfg = run_config(folder, b_dec_init_method="zeros", log_to_jsonl=None, lr_decay_steps=0,
                         lr_warm_up_steps=0, **fields)
        model = tiny_model(d_model=width, n_layers=2)
        rows = Dataset.from_dict({"tokens": token_rows(64)})
        runner = SAETrainingRunner(cfg, rows, model)
        report = runner.preflight()
        runner.run()
        return report.peak["cpu"]

    folder, fields = sys.argv[1], json.loads(sys.argv[2])
    run(folder + "/warm", architecture=fields["architecture"], d_in=16, d_sae=64, k=4,
        training_tokens=320)
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    estimate = run(folder + "/run", **fields)
    print(json.dumps([estimate, status("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    "architecture",
    [
        "standard",
        "topk",
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
        ],
    ],
)
def test_the_estimate_is_close_to_the_peak_that_is_measured(
    architecture: str, tmp_path: Path, repository: Path
) -> None:
    fields = {"architecture": architecture, "d_in": 256, "d_sae": 12288, "k": 32,
              "train_batch_size_tokens": 512, "training_tokens": 512 * 3,
              "store_batch_size_prompts": 16, "n_batches_in_buffer": 8}  # fmt: skip
    # Otherwise the C library keeps freed memory, how much depends on the order of events.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEASURE), str(tmp_path), json.dumps(fields)],
        cwd=repository, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    estimate, measured = json.loads(done.stdout.splitlines()[-1])
    print(architecture, estimate / 1e6, measured / 1e6)
    assert estimate == pytest.approx(measured, rel=0.15)
    assert torch.get_num_threads() == 1
