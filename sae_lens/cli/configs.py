"""A command that is a config: one flag per field, a file that the flags win over, a dry run."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any, TypeVar

from sae_lens.cli.errors import UsageError

Config = TypeVar("Config")


def add_config(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Declare `--config`, `--dry-run` and a flag for every field of the config class."""
    from sae_lens.config.arguments import add_config_arguments

    parser.usage = f"{parser.prog} [--config FILE] [--FIELD VALUE ...] [--dry-run] [--debug]"
    parser.add_argument("--config", metavar="FILE", help="a YAML or JSON file with fields")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the config, print it as JSON, do nothing"
    )
    add_config_arguments(parser, cls)


def read_config(args: argparse.Namespace, cls: type[Config]) -> Config:
    """The config that file and flags make together.

    Raises:
        UsageError: when there is neither, or they do not make a valid config.
    """
    from sae_lens.config.arguments import config_from_file, config_from_values, config_values

    values = config_values(cls, args)
    if args.config is None and not values:
        raise UsageError("nothing to do: give --config FILE or fields; --help lists them")
    try:
        if args.config is None:
            return config_from_values(cls, values, "the command line")
        return config_from_file(cls, args.config, values)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(str(error)) from error


def print_config(cfg: Any) -> None:
    """The config as JSON, as `--dry-run` shows it."""
    values = cfg.to_dict() if hasattr(cfg, "to_dict") else asdict(cfg)
    print(json.dumps(values, indent=2, default=str))
