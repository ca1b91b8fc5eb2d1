"""`sae-lens pretokenize`: texts as rows of tokens, once for all runs."""

from __future__ import annotations

import argparse

from sae_lens.cli.configs import add_config, print_config, read_config
from sae_lens.cli.errors import UsageError

_EPILOG = """\
Without a network, this works as it stands:

  sae-lens pretokenize --tokenizer_name sae-lens-tiny-python \\
      --dataset_path sae-lens-tiny-python-text --context_size 256 --save_path tokens
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens pretokenize`."""
    from sae_lens.config import PretokenizeRunnerConfig

    parser.epilog = _EPILOG
    add_config(parser, PretokenizeRunnerConfig)


def run(args: argparse.Namespace) -> int:
    """Tokenise, save or push, and say how many rows there are."""
    from sae_lens.config import PretokenizeRunnerConfig

    cfg = read_config(args, PretokenizeRunnerConfig)
    if args.dry_run:
        print_config(cfg)
        return 0
    if not cfg.save_path and not cfg.hf_repo_id:
        raise UsageError("the rows would go nowhere: give --save_path FOLDER or --hf_repo_id NAME")
    from sae_lens.pretokenize_runner import PretokenizeRunner

    rows = PretokenizeRunner(cfg).run()
    where = " and ".join(filter(None, (cfg.save_path, cfg.hf_repo_id)))
    size = f"{len(rows):,} rows" if hasattr(rows, "__len__") else "rows"
    print(f"{size} of {cfg.context_size} tokens in {where}")
    return 0
