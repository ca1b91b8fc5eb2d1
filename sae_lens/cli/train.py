"""`sae-lens train`: a config file and flags, then a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens.cli.errors import UsageError

if TYPE_CHECKING:
    from sae_lens.config.runner import LanguageModelSAERunnerConfig

_EPILOG = """\
Every field of LanguageModelSAERunnerConfig is a flag; flags win over the file. Dictionaries are
written as JSON (--activation_fn_kwargs '{"k": 32}'), None as none, and 1e6 or 1_000_000 are whole
numbers. Without a network, this works as it stands:

  sae-lens train --model_name sae-lens-tiny-python --dataset_path sae-lens-tiny-python-text \\
      --hook_name blocks.2.hook_resid_pre --hook_layer 2 --d_in 128 --architecture topk \\
      --normalize_sae_decoder false --training_tokens 200_000 --log_to_wandb false
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens train`: one flag per field of the config."""
    from sae_lens.config import LanguageModelSAERunnerConfig
    from sae_lens.config.arguments import add_config_arguments

    parser.usage = "sae-lens train [--config FILE] [--FIELD VALUE ...] [--dry-run] [--debug]"
    parser.epilog = _EPILOG
    parser.add_argument("--config", metavar="FILE", help="a YAML or JSON file with fields")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the config, print it as JSON, train nothing"
    )
    add_config_arguments(parser, LanguageModelSAERunnerConfig)


def run(args: argparse.Namespace) -> int:
    """Train, and say where the result lies."""
    cfg = read_config(args)
    if args.dry_run:
        import json

        print(json.dumps(cfg.to_dict(), indent=2, default=str))
        return 0
    from sae_lens.sae_training_runner import InterruptedException, SAETrainingRunner

    try:
        SAETrainingRunner(cfg).run()
    except InterruptedException as interruption:
        # the runner has saved a checkpoint by now
        raise KeyboardInterrupt from interruption
    saved = sorted(Path(cfg.checkpoint_path).glob("final_*"))
    saved += [Path(cfg.output_path)] if cfg.output_path else []
    for folder in saved:
        print(f"saved in {folder} (`sae-lens show {folder}` says what it holds)")
    return 0


def read_config(args: argparse.Namespace) -> LanguageModelSAERunnerConfig:
    """The config that file and flags make together.

    Raises:
        UsageError: when there is neither, or they do not make a valid config.
    """
    from sae_lens.config import LanguageModelSAERunnerConfig
    from sae_lens.config.arguments import config_from_file, config_from_values, config_values

    values = config_values(LanguageModelSAERunnerConfig, args)
    if args.config is None and not values:
        raise UsageError("nothing to train: give --config FILE or fields; --help lists them")
    try:
        if args.config is None:
            return config_from_values(LanguageModelSAERunnerConfig, values, "the command line")
        return config_from_file(LanguageModelSAERunnerConfig, args.config, values)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(str(error)) from error
