"""`sae-lens demo`: the whole way from a language model to a report, without a network."""

from __future__ import annotations

import argparse
from functools import partial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens demo`."""
    from sae_lens.config.arguments import add_config_arguments
    from sae_lens.demo_runner import DemoSettings

    parser.add_argument(
        "--output", metavar="DIR", default="demo_output", help="default: %(default)s"
    )
    add_config_arguments(parser, DemoSettings)


def run(args: argparse.Namespace) -> int:
    """Train two SAEs, print what they achieve on held-out text, write the report."""
    from sae_lens.config.arguments import config_from_values, config_values
    from sae_lens.demo_runner import DemoSettings, run_demo

    settings = config_from_values(DemoSettings, config_values(DemoSettings, args))
    run_demo(args.output, settings, say=partial(print, flush=True))
    return 0
