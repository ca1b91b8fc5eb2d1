"""What `sae-lens demo` runs: two SAEs on the embedded model, judged on held-out text, and a report.

A composition root, and an example of one: config, runner, evaluation, dashboard, each used as in
any other script. Nothing is downloaded.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_lens.activations.embedded import load_embedded_model, load_embedded_text
from sae_lens.activations.store import ActivationsStore
from sae_lens.analysis.dashboards.charts import Points
from sae_lens.analysis.dashboards.collect import DashboardSettings, collect_feature_data
from sae_lens.analysis.dashboards.report import ReportedSAE, write_report_html
from sae_lens.config.runner import LanguageModelSAERunnerConfig
from sae_lens.constants import EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes.base import SAE
from sae_lens.saes.config import TrainingSAEConfig
from sae_lens.saes.jumprelu import JumpReLUTrainingSAEConfig
from sae_lens.saes.topk import TopKTrainingSAEConfig

logger = logging.getLogger(__name__)

HOOK_NAME = "blocks.2.hook_resid_pre"
D_IN = 128
EXPANSION_FACTOR = 16
CONTEXT_SIZE = 256
BATCH_TOKENS = 1024
REPORT_FILENAME = "report.html"

# Logged name -> heading of its chart.
_CURVES = {
    "metrics/explained_variance": "Explained variance",
    "metrics/l0": "L0",
    "losses/mse_loss": "Squared error",
    "sparsity/dead_features": "Dead features",
}


@dataclass(frozen=True)
class DemoSettings:
    """How much the demo does.

    Attributes:
        training_tokens: per SAE.
        eval_prompts: held-out contexts for the table.
        n_features: features per SAE that the report shows.
        dashboard_tokens: held-out tokens on which they are watched.
        device: for language model and SAEs.
        seed: of everything random.
    """

    training_tokens: int = 1_000_000
    eval_prompts: int = 256
    n_features: int = 30
    dashboard_tokens: int = 150_000
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class DemoSAE:
    """One trained SAE and what was measured of it on held-out text.

    Attributes:
        name: its architecture.
        folder: where it lies.
        l0: mean number of active features per token.
        explained_variance: share of the activations' variance that it reconstructs.
        ce_loss_score: share of the loss that zeroing the hook costs and the SAE recovers.
        kl_div_score: the same for the divergence from the model's own predictions.
        dead_features: features that fire on none of the evaluated tokens.
        tokens_per_second: of training, language model included.
        densities: share of the evaluated tokens on which each feature fires.
        curves: of training, by heading.
    """

    name: str
    folder: Path
    l0: float
    explained_variance: float
    ce_loss_score: float
    kl_div_score: float
    dead_features: int
    tokens_per_second: float
    densities: list[float]
    curves: Mapping[str, Points]

    def figures(self) -> dict[str, str]:
        """The row of the table."""
        return {
            "L0": f"{self.l0:.1f}",
            "explained variance": f"{self.explained_variance:.3f}",
            "CE-loss score": f"{self.ce_loss_score:.3f}",
            "KL score": f"{self.kl_div_score:.3f}",
            "dead features": f"{self.dead_features} of {len(self.densities)}",
            "tokens/s": f"{self.tokens_per_second:,.0f}",
        }


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves: the SAEs with their figures, and the report."""

    saes: list[DemoSAE]
    report: Path
    seconds: float

    def table(self) -> str:
        """The figures as text."""
        rows = [{"SAE": sae.name, **sae.figures()} for sae in self.saes]
        return as_table(rows)


def run_demo(
    output_dir: str | Path = "demo_output",
    settings: DemoSettings | None = None,
    say: Callable[[str], None] = logger.info,
) -> DemoResult:
    """Train, judge, report.

    Args:
        output_dir: Gets the folders `topk` and `jumprelu`, `report.html`, and `runs` with the logs
            and checkpoints of training.
        settings: How much is done.
        say: Where progress and the table are told; the command line passes `print`.

    Returns:
        The figures and the report's path.
    """
    with warnings.catch_warnings():
        # The embedded text is tokenised on the fly, which for its size is quick.
        warnings.filterwarnings("ignore", message="Dataset is not tokenized")
        return _run_demo(Path(output_dir), settings or DemoSettings(), say)


def _run_demo(output: Path, settings: DemoSettings, say: Callable[[str], None]) -> DemoResult:
    started = time.monotonic()
    model = load_embedded_model(device=settings.device)
    held_out = load_embedded_text("heldout")
    trained: list[DemoSAE] = []
    reported: list[ReportedSAE] = []
    for sae_config in _sae_configs(settings):
        name = str(sae_config.architecture)
        say(
            f"Training a {name} SAE with {sae_config.d_sae} features at {HOOK_NAME} of "
            f"{EMBEDDED_MODEL_NAME} on {settings.training_tokens:,} tokens"
        )
        config = runner_config(sae_config, output, settings)
        tokens_per_second = train_timed(config)
        sae = SAE.load_from_disk(output / name, device=settings.device)
        result = judge_on_held_out(sae, model, held_out, settings, config, tokens_per_second)
        features = collect_feature_data(
            sae,
            model,
            held_out,
            spread_features(result.densities, settings.n_features),
            settings=DashboardSettings(n_tokens=settings.dashboard_tokens, seed=settings.seed),
        )
        trained.append(result)
        reported.append(
            ReportedSAE(name, result.figures(), result.curves, result.densities, features)
        )
    report = _write_report(reported, output / REPORT_FILENAME, settings, held_out)
    demo = DemoResult(trained, report, time.monotonic() - started)
    say("")
    say(demo.table())
    say("")
    say(f"On held-out text, in {demo.seconds:.0f} s altogether. The SAEs are in {output}/.")
    say(f"Open {report.resolve().as_uri()} to look at their features.")
    return demo


def runner_config(
    sae: TrainingSAEConfig, output: Path, settings: DemoSettings
) -> LanguageModelSAERunnerConfig:
    """The run that trains one of the SAEs."""
    steps = settings.training_tokens // BATCH_TOKENS
    run_folder = output / "runs" / str(sae.architecture)
    log = run_folder / "log.jsonl"
    log.unlink(missing_ok=True)  # loggers append
    return LanguageModelSAERunnerConfig(
        sae=sae,
        model_name=EMBEDDED_MODEL_NAME,
        hook_name=HOOK_NAME,
        dataset_path=EMBEDDED_DATASET_NAME,
        streaming=False,
        context_size=CONTEXT_SIZE,
        exclude_special_tokens=True,
        n_batches_in_buffer=max(2, min(16, settings.training_tokens // (16 * CONTEXT_SIZE))),
        store_batch_size_prompts=16,
        model_from_pretrained_kwargs={},
        n_batches_for_norm_estimate=2,
        training_tokens=settings.training_tokens,
        train_batch_size_tokens=BATCH_TOKENS,
        lr=3e-3,
        lr_warm_up_steps=min(100, steps // 10),
        lr_decay_steps=steps // 3,
        adam_beta1=0.9,
        b_dec_init_method="mean",
        dead_feature_window=min(200, max(1, steps // 4)),
        feature_sampling_window=min(500, max(1, steps // 2)),
        device=settings.device,
        seed=settings.seed,
        log_to_wandb=False,
        log_to_jsonl=str(log),
        wandb_log_frequency=max(1, steps // 80),
        eval_every_n_wandb_logs=10**9,
        checkpoint_path=str(run_folder),
        output_path=str(output / str(sae.architecture)),
        verbose=False,
    )


def spread_features(densities: Sequence[float], count: int) -> list[int]:
    """Features from frequent to rare, at even ranks among those that fire.

    The very rarest are passed over as long as there are enough others: little can be shown of them.
    """
    alive = sorted((i for i, d in enumerate(densities) if d > 0), key=lambda i: -densities[i])
    often = [i for i in alive if densities[i] > 1e-4]
    pool = often if len(often) >= count else alive or list(range(len(densities)))
    count = min(count, len(pool))
    return [pool[int((n + 0.5) * len(pool) / count)] for n in range(count)]


def as_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Aligned columns under their names; the first is flush left, the others right."""
    columns = list(rows[0]) if rows else []
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]
    lines = [columns, ["-" * width for width in widths]]
    lines += [[row[name] for name in columns] for row in rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _sae_configs(settings: DemoSettings) -> list[TrainingSAEConfig]:
    shared: dict[str, Any] = {
        "d_in": D_IN,
        "d_sae": EXPANSION_FACTOR * D_IN,
        "normalize_activations": "expected_average_only_in",
        "device": settings.device,
    }
    steps = settings.training_tokens // BATCH_TOKENS
    jumprelu = JumpReLUTrainingSAEConfig(
        **shared,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=27,  # the reconstruction pulls it a few above
        l0_coefficient=0.5,
        l0_warm_up_steps=steps // 6,
        jumprelu_init_threshold=0.2,
        jumprelu_bandwidth=0.2,
    )
    return [TopKTrainingSAEConfig(**shared, k=32), jumprelu]


def train_timed(config: LanguageModelSAERunnerConfig) -> float:
    """Train and save the SAE of a run; the tokens per second, language model included."""
    runner = SAETrainingRunner(config)
    started = time.monotonic()
    runner.run()
    return config.total_training_tokens / (time.monotonic() - started)


def judge_on_held_out(
    sae: SAE,
    model: Any,
    held_out: Any,
    settings: DemoSettings,
    config: LanguageModelSAERunnerConfig,
    tokens_per_second: float,
) -> DemoSAE:
    """Measure a trained SAE, or transcoder or crosscoder, on text that it has not seen.

    Args:
        sae: in its inference form.
        model: whose activations it was trained on.
        held_out: the text, as `load_embedded_text("heldout")` gives it.
        settings: how many contexts are looked at, and where.
        config: the run that trained it and wrote its log, from which the curves are.
        tokens_per_second: of training, as `train_timed` says.
    """
    store = ActivationsStore.from_sae(
        model,
        sae,
        dataset=held_out,
        streaming=False,
        store_batch_size_prompts=16,
        device=settings.device,
    )
    batches = max(1, settings.eval_prompts // 16)
    metrics, per_feature = run_evals(
        sae,
        store,
        model,
        EvalConfig(
            batch_size_prompts=16,
            n_eval_reconstruction_batches=batches,
            n_eval_sparsity_variance_batches=batches,
            compute_kl=True,
            compute_ce_loss=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
        ),
        ignore_tokens=set(model.tokenizer.all_special_ids),
        verbose=True,
    )
    densities = torch.as_tensor(per_feature["feature_density"]).tolist()
    assert config.output_path and config.log_to_jsonl
    return DemoSAE(
        name=str(sae.cfg.architecture),
        folder=Path(config.output_path),
        l0=metrics["sparsity"]["l0"],
        explained_variance=metrics["reconstruction_quality"]["explained_variance"],
        ce_loss_score=metrics["model_performance_preservation"]["ce_loss_score"],
        kl_div_score=metrics["model_behavior_preservation"]["kl_div_score"],
        dead_features=sum(density == 0 for density in densities),
        tokens_per_second=tokens_per_second,
        densities=densities,
        curves=_read_curves(Path(config.log_to_jsonl)),
    )


def _read_curves(log: Path) -> dict[str, Points]:
    """The charts' points from a log of JSON lines."""
    points: dict[str, list[tuple[float, float]]] = {title: [] for title in _CURVES.values()}
    for line in log.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        tokens = values.get("details/n_training_tokens")
        for name, title in _CURVES.items():
            if tokens is not None and values.get(name) is not None:
                points[title].append((tokens, values[name]))
    return dict(points)


def _write_report(
    saes: Sequence[ReportedSAE], path: Path, settings: DemoSettings, held_out: Any
) -> Path:
    n_eval = settings.eval_prompts * CONTEXT_SIZE
    return write_report_html(
        saes,
        path,
        title="Sparse autoencoders on a small language model",
        lead=(
            "A four-layer transformer that has read CPython's standard library and documentation, "
            "and autoencoders that take its middle residual stream apart into features. Everything "
            "below was measured on files that neither has seen."
        ),
        facts={
            "model": EMBEDDED_MODEL_NAME,
            "hook": HOOK_NAME,
            "features": f"{EXPANSION_FACTOR * D_IN:,} ({EXPANSION_FACTOR} per dimension)",
            "training tokens": f"{settings.training_tokens:,} each",
            "held-out files": f"{len(held_out)}",
        },
        note=(
            f"Over {n_eval:,} held-out tokens. CE-loss score: the share of the loss that zeroing "
            "the activations costs and the reconstruction wins back; KL score: the same for the "
            "divergence from the model's own predictions. Dead: never fired on these tokens. "
            "Tokens per second of training, language model included."
        ),
    )
