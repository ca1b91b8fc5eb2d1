"""`sae-lens check`: what a run will need and whether it can work, without running it."""

from __future__ import annotations

import argparse

from sae_lens.cli.configs import add_config, print_config, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens check`: those of `sae-lens train`."""
    from sae_lens.config import LanguageModelSAERunnerConfig

    add_config(parser, LanguageModelSAERunnerConfig)


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 when the run cannot work."""
    from sae_lens.config import LanguageModelSAERunnerConfig

    cfg = read_config(args, LanguageModelSAERunnerConfig)
    if args.dry_run:
        print_config(cfg)
        return 0
    from sae_lens.preflight import preflight

    report = preflight(cfg)
    print("\n".join(report.lines()))
    return 1 if report.problems else 0
