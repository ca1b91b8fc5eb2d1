"""Exceptions that belong to no single part of the library."""


class InvalidArgumentError(ValueError, AssertionError):
    """An argument outside what is allowed.

    Early releases of the API raised `AssertionError` in these places and later ones `ValueError`;
    callers match on either, so this is both.
    """
