"""Exceptions that belong to no single part of the library."""


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
