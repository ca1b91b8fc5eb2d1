"""The frame of the command: picking a subcommand, exit codes, errors in one line."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import sae_lens
from sae_lens.cli import main as cli
from sae_lens.cli.errors import UsageError, in_one_line
from sae_lens.errors import add_note


def use_command(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """Put a command in the place of all others that fails with `error`."""

    def run(args: argparse.Namespace) -> int | None:
        if error is not None:
            raise error
        return None

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int)

    command = SimpleNamespace(run=run, add_arguments=add_arguments)
    monkeypatch.setattr(cli, "load_command", lambda name: command)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    printed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n    {name}" in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"sae-lens {sae_lens.__version__}"


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["show"], ["show", "a", "b"], ["show", "--nonsense"]]
)
def test_a_wrong_call_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "error:" in error
    assert len(error.splitlines()) == 1


def test_a_misspelled_flag_gets_its_near_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "folder", "--jsno"]) == 2
    assert "unknown argument --jsno: did you mean --json?" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"usage: sae-lens {name}" in capsys.readouterr().out


def test_a_command_that_returns_nothing_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    use_command(monkeypatch)
    assert cli.main(["show", "--number", "3"]) == 0


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("d_in is 3,\n  the hook has 4"), 1, "error: d_in is 3, the hook has 4"),
        (UsageError("no such field"), 2, "error: no such field"),
        (KeyError("d_in"), 1, "error: KeyError: 'd_in'"),
        (RuntimeError(), 1, "error: RuntimeError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_on_standard_error(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    use_command(monkeypatch, error)
    assert cli.main(["show"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [f"sae-lens show: {line}"]


@pytest.mark.parametrize("argv", [["--debug", "show"], ["show", "--debug"]])
def test_debug_lets_the_error_through(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    use_command(monkeypatch, ValueError("the reason"))
    with pytest.raises(ValueError, match="the reason"):
        cli.main(argv)


def test_an_os_error_names_the_file() -> None:
    failed = RuntimeError("the model has a hole")
    add_note(failed, "The run can go on from here.")
    assert in_one_line(failed) == "the model has a hole The run can go on from here."

    class Older(RuntimeError):
        add_note = None  # as before Python 3.11

    older = Older("the model has a hole")
    add_note(older, "The run can go on from here.")
    assert in_one_line(older) == in_one_line(failed)
    message = in_one_line(FileNotFoundError(2, "No such file or directory", "run.yaml"))
    assert "run.yaml" in message
    assert "No such file" in message


@pytest.mark.parametrize("program", [["-m", "sae_lens"], ["-m", "sae_lens.cli.main"]])
def test_as_a_program(program: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *program, "show", "/nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "sae-lens show: error: There is no SAE folder at /nowhere.\n"


def test_the_installed_command() -> None:
    script = os.path.join(os.path.dirname(sys.executable), "sae-lens")
    if not os.path.exists(script):
        pytest.skip("the package is on the path, but not installed")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"sae-lens {sae_lens.__version__}\n")


def test_help_is_instant() -> None:
    """The list of commands needs neither torch nor TransformerLens."""
    code = "import sys; from sae_lens.cli.main import main; main([]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
