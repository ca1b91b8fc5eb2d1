"""`sae-lens train`: a config file and flags, then a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens.cli.configs import add_config, print_config, read_config

_EPILOG = """\
Every field of LanguageModelSAERunnerConfig is a flag; flags win over the file. Dictionaries are
written as JSON (--activation_fn_kwargs '{"k": 32}'), None as none, and 1e6 or 1_000_000 are whole
numbers. Without a network, this works as it stands:

  sae-lens train --model_name sae-lens-tiny-python --dataset_path sae-lens-tiny-python-text \\
      --hook_name blocks.2.hook_resid_pre --hook_layer 2 --d_in 128 --architecture topk \\
      --normalize_sae_decoder false --training_tokens 200_000 --log_to_wandb false
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens train`."""
    from sae_lens.config import LanguageModelSAERunnerConfig

    parser.epilog = _EPILOG
    add_config(parser, LanguageModelSAERunnerConfig)


def run(args: argparse.Namespace) -> int:
    """Train, and say where the result lies."""
    from sae_lens.config import LanguageModelSAERunnerConfig

    cfg = read_config(args, LanguageModelSAERunnerConfig)
    if args.dry_run:
        print_config(cfg)
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
