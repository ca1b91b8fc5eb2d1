"""`sae-lens synth`: train architectures on known features and see which of them find these."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens.atomic_files import atomic_write_bytes, atomic_write_json
from sae_lens.cli.errors import UsageError

if TYPE_CHECKING:
    from sae_lens.synthetic.benchmark import BenchmarkResult

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
    from sae_lens.synthetic.benchmark import (
        BenchmarkConfig,
        curves,
        run_benchmark,
    )
    from sae_lens.synthetic.data import SyntheticConfig
    from sae_lens.synthetic.plot import svg_of_curves

    try:
        cfg = BenchmarkConfig(
            data=SyntheticConfig(
                d_in=args.d_in,
                n_features=args.n_features,
                mean_l0=args.mean_l0,
                zipf=args.zipf,
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
    print(f"{'architecture':<36}{'wanted':>8}" + "".join(f"{name[:11]:>12}" for name in _COLUMNS))
    results = run_benchmark(cfg, report=_print_result)
    if args.output is not None:
        plain = {"config": asdict(cfg), "results": [result.to_dict() for result in results]}
        atomic_write_json(args.output / "results.json", plain, indent=2)
        picture = svg_of_curves(
            curves(results, "mcc"),
            "active latents (L0)",
            "mean correlation coefficient",
            "Recovery of known features",
        )
        atomic_write_bytes(args.output / "recovery.svg", picture.encode())
        print(f"Wrote results.json and recovery.svg to {args.output}.")
    return 0


def _print_result(result: BenchmarkResult) -> None:
    values = "".join(f"{getattr(result.recovery, name):>12.3f}" for name in _COLUMNS)
    print(f"{result.architecture:<36}{result.wanted_l0:>8g}{values}", flush=True)
