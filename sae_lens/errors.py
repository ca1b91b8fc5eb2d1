"""Exceptions that belong to no single part of the library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InvalidArgumentError(ValueError, AssertionError):
    """An argument outside what is allowed.

    Early releases of the API raised `AssertionError` in these places and later ones `ValueError`;
    callers match on either, so this is both.
    """


class SAELoadError(ValueError, RuntimeError):
    """A folder or file that cannot be read as an SAE: truncated, foreign, or contradicting itself.

    The message names the file, what is wrong with it, and what would be right. It is a `ValueError`
    for those who check their input and a `RuntimeError` as torch's own loading errors are.
    """


class DataSourceError(RuntimeError):
    """The training data cannot be read any further, for a reason that lies with their source."""


# What code runs into when a file holds something else than it counts on.
_STUMBLES = (
    AttributeError,
    TypeError,
    IndexError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
)


@contextmanager
def stumbling_over(source: object, kind: type[Exception]) -> Iterator[None]:
    """In the body, errors that only say what code stumbled over are raised as `kind`, with why.

    Errors that are made for readers (`ValueError`, `OSError`, `KeyError`, `NotImplementedError`)
    pass as they are.

    Args:
        source: the file or folder that is read.
        kind: the type to raise.
    """
    try:
        yield
    except (ValueError, OSError, NotImplementedError):
        raise
    except _STUMBLES as error:
        raise kind(
            f"{source} does not hold what it should ({type(error).__name__}: {str(error)[:500]})."
        ) from error


def add_note(error: BaseException, note: str) -> None:
    """Add a line to what is shown of an error, whose type and message stay as they are.

    Python before 3.11 shows no notes; there it is added to the message.
    """
    add = getattr(error, "add_note", None)
    if add is not None:
        add(note)
    elif error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])


def message_of(error: BaseException) -> str:
    """What an error says, with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
