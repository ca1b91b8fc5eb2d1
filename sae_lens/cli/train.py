"""`sae-lens train`: a config file and flags, then a run."""

from __future__ import annotations

import argparse
import sys
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
    # The field of that name must stay false; on a command line the word is worth more.
    action = parser._option_string_actions["--resume"]
    action.const, action.metavar = "latest", "PATH|latest"
    action.help = (
        "go on with an interrupted run: from a checkpoint's folder, a run's folder, or (when "
        "nothing is given) the latest checkpoint under checkpoint_path"
    )


def run(args: argparse.Namespace) -> int:
    """Train, and say where the result lies."""
    from sae_lens.config import LanguageModelSAERunnerConfig

    resume = getattr(args, "resume", None)
    if resume is not None and resume.lower() not in ("true", "false"):
        args.resume_from_checkpoint = resume
        delattr(args, "resume")
    cfg = read_config(args, LanguageModelSAERunnerConfig)
    if args.dry_run:
        print_config(cfg)
        return 0
    from sae_lens.sae_training_runner import InterruptedException, SAETrainingRunner

    runner = SAETrainingRunner(cfg)
    try:
        runner.run()
    except InterruptedException as interruption:
        # the runner has saved a checkpoint by now
        print(f"`--resume {runner.cfg.checkpoint_path}` goes on from here", file=sys.stderr)
        raise KeyboardInterrupt from interruption
    saved = sorted(Path(runner.cfg.checkpoint_path).glob("final_*"))
    saved += [Path(cfg.output_path)] if cfg.output_path else []
    for folder in saved:
        print(f"saved in {folder} (`sae-lens show {folder}` says what it holds)")
    return 0
