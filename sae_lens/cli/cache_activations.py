"""`sae-lens cache-activations`: activations of a language model on disk, for many trainings."""

from __future__ import annotations

import argparse

from sae_lens.cli.configs import add_config, print_config, read_config

_EPILOG = """\
An interrupted run goes on where it stopped when it is started again. Without a network, this works
as it stands:

  sae-lens cache-activations --model_name sae-lens-tiny-python \\
      --dataset_path sae-lens-tiny-python-text --hook_name blocks.2.hook_resid_pre \\
      --hook_layer 2 --d_in 128 --context_size 256 --training_tokens 200_000 \\
      --model_batch_size 16 --new_cached_activations_path cache
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sae-lens cache-activations`."""
    from sae_lens.config import CacheActivationsRunnerConfig

    parser.epilog = _EPILOG
    add_config(parser, CacheActivationsRunnerConfig)


def run(args: argparse.Namespace) -> int:
    """Say how much will be written, write it, and say where it lies."""
    from sae_lens.config import CacheActivationsRunnerConfig

    cfg = read_config(args, CacheActivationsRunnerConfig)
    if args.dry_run:
        print_config(cfg)
        return 0
    from sae_lens.cache_activations_runner import CacheActivationsRunner

    runner = CacheActivationsRunner(cfg)
    print(runner, flush=True)
    cache = runner.run()
    print(f"{len(cache):,} rows in {cfg.new_cached_activations_path}")
    return 0
