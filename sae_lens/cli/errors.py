"""How the command line speaks of errors."""

from __future__ import annotations

from sae_lens.errors import message_of


class UsageError(ValueError):
    """The command was called wrongly: it ends with exit code 2 instead of 1."""


def in_one_line(error: BaseException) -> str:
    """The message of an error on one line, with its type where the message says too little."""
    message = " ".join(message_of(error).split())
    # str(KeyError("d_in")) is just 'd_in' in quotes; an OSError says itself what it is.
    if not message or isinstance(error, LookupError):
        return f"{type(error).__name__}: {message}".rstrip(": ")
    return message
