"""`sae-lens synth`: train architectures on known features and see which of them find these."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens.atomic_files import atomic_write_bytes, atomic_write_json
from sae_lens.cli.errors import UsageError

if TYPE_CHECKING:
    from sae_lens.synthetic.benchmark import BenchmarkConfig, BenchmarkResult

_COLUMNS = ("l0", "mcc", "uniqueness", "dead", "precision", "recall", "explained_variance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which architectures, at which sparsities, on what, and where results go."""
    parser.add_argument(
        "--architectures", nargs="+", metavar="NAME", help="which to train; all by default"
    )
    parser.add_argument(
        "--l0", nargs="+", type=float, default=[3.0, 6.0, 9.0], help="wanted active latents"
    )
    parser.add_argument("--d-in", type=int, default=64, help="width of the activations")
    parser.add_argument("--n-features", type=int, default=128, help="true features")
    parser.add_argument("--d-sae", type=int, help="latents; as many as true features by default")
    parser.add_argument("--mean-l0", type=float, default=6.0, help="true features active at once")
    parser.add_argument("--zipf", type=float, default=0.5, help="exponent of firing frequencies")
    parser.add_argument(
        "--pairs", type=int, help="pairs of features that fire together; 1/16 of them by default"
    )
    parser.add_argument(
        "--children",
        type=int,
        help="features that fire only where another does; 1/16 of them by default",
    )
    parser.add_argument("--steps", type=int, default=4000, help="training steps of each SAE")
    parser.add_argument("--batch-size", type=int, default=256, help="samples per step")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of data and first weights")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where results.json and recovery.svg go"
    )


def run(args: argparse.Namespace) -> int:
    """Train, print a line for each SAE, write the files."""
    from sae_lens.synthetic.architectures import architectures
    from sae_lens.synthetic.benchmark import BenchmarkConfig, run_benchmark
    from sae_lens.synthetic.data import SyntheticConfig

    n_related = args.n_features // 16
    try:
        cfg = BenchmarkConfig(
            data=SyntheticConfig(
                d_in=args.d_in,
                n_features=args.n_features,
                mean_l0=args.mean_l0,
                zipf=args.zipf,
                n_correlated_pairs=n_related if args.pairs is None else args.pairs,
                n_children=n_related if args.children is None else args.children,
                seed=args.seed,
            ),
            architectures=tuple(args.architectures or architectures()),
            l0s=tuple(args.l0),
            d_sae=args.d_sae,
            n_steps=args.steps,
            batch_size=args.batch_size,
            lr=args.lr,
            seed=args.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    results: list[BenchmarkResult] = []

    def take(result: BenchmarkResult) -> None:
        results.append(result)
        _print_result(result)
        if args.output is not None:  # at once: what is known outlives an interruption
            plain = {"config": asdict(cfg), "results": [known.to_dict() for known in results]}
            atomic_write_json(args.output / "results.json", plain, indent=2)

    print(f"{'architecture':<36}{'wanted':>8}" + "".join(f"{name[:11]:>12}" for name in _COLUMNS))
    run_benchmark(cfg, report=take)
    if args.output is not None:
        print(f"Wrote {' and '.join(_write_picture(args.output, results, cfg))} to {args.output}.")
    return 0


def _write_picture(folder: Path, results: list[BenchmarkResult], cfg: BenchmarkConfig) -> list[str]:
    """Draw what was recovered, if it can be drawn; the names of the files that are there."""
    from sae_lens.synthetic.plot import recovery_svg

    try:
        picture = recovery_svg(results, cfg.data.mean_l0)
    except ImportError as error:
        print(error)
        return ["results.json"]
    atomic_write_bytes(folder / "recovery.svg", picture.encode())
    return ["results.json", "recovery.svg"]


def _print_result(result: BenchmarkResult) -> None:
    values = "".join(f"{getattr(result.recovery, name):>12.3f}" for name in _COLUMNS)
    print(f"{result.architecture:<36}{result.wanted_l0:>8g}{values}", flush=True)
