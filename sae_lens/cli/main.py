"""The command `sae-lens`: picks a subcommand, runs it, and turns errors into one line.

Exit codes: 0 when all went well, 1 when the command failed, 2 when it was called wrongly, 130 when
it was interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from sae_lens._version import __version__
from sae_lens.cli.errors import UsageError, in_one_line

# name -> what it does. The module of a subcommand is loaded only when it is asked for, so that
# `sae-lens --help` answers at once. Each module has `add_arguments(parser)` and `run(args)`.
COMMANDS = {
    "train": "train an SAE on the activations of a language model",
    "check": "say what a training run will need, and whether it can work",
    "demo": "train two SAEs on the embedded model and write a report, without a network",
    "show": "say what an SAE folder holds",
    "eval": "measure how good a saved or released SAE is",
    "dashboard": "make a page on what an SAE's features fire on",
    "synth": "train architectures on known features and see which of them find these",
    "list": "list the SAEs that have been published",
    "upload": "put SAE folders into a repository on the Hugging Face Hub",
    "pretokenize": "turn a text dataset into rows of tokens, once for all runs",
    "cache-activations": "write a model's activations to disk, once for all runs",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the near match of a misspelled flag."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but what this parser does not know is an error here and now."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.7)
            self.error(f"unknown argument {flag}" + (f": did you mean {near[0]}?" if near else ""))
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and the message, without the long list of flags."""
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists the arguments)\n")


def build_parser(command: str | None = None) -> Parser:
    """The parser of all subcommands; only the one named `command` gets its arguments."""
    everywhere = Parser(add_help=False)
    everywhere.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error, and debug messages",
    )
    parser = Parser(
        prog="sae-lens",
        description="Train, load and analyse sparse autoencoders.",
        epilog="`sae-lens COMMAND --help` lists the arguments of a command.",
        parents=[everywhere],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sae-lens {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, what in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            parents=[everywhere],
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            load_command(name).add_arguments(subparser)
    return parser


def load_command(name: str) -> ModuleType:
    """The module of a subcommand."""
    return importlib.import_module(f"sae_lens.cli.{name.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: the arguments after the program's name; `sys.argv` when None.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser(command)
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    if args.command is None:
        parser.print_help()
        return 2
    debug = getattr(args, "debug", False)
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(message)s")
    try:
        with _warnings_in_one_line():
            return load_command(args.command).run(args) or 0
    except KeyboardInterrupt:
        print(f"sae-lens {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) is gone: nobody is left to tell.
        sys.stderr.close()
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"sae-lens {args.command}: error: {in_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Warnings as `warning: …` instead of with the line of code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
