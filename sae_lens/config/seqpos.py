"""Which positions of a prompt are used: the arguments of a `slice`."""

from __future__ import annotations

from sae_lens.errors import InvalidArgumentError


def _validate_seqpos(seqpos: tuple[int | None, ...], context_size: int) -> None:
    """Refuse a slice that goes backwards or leaves no position of the context.

    Raises:
        InvalidArgumentError: which is a `ValueError` and an `AssertionError`.
    """
    given = f"seqpos_slice={tuple(seqpos)} with context_size={context_size}"
    if not 1 <= len(seqpos) <= 3:
        raise InvalidArgumentError(
            f"{given}: a slice has one to three numbers (stop; start, stop; start, stop, step)."
        )
    step = seqpos[2] if len(seqpos) == 3 and seqpos[2] is not None else 1
    if step < 1:
        raise InvalidArgumentError(f"{given}: the step must be at least 1.")
    if len(range(context_size)[slice(*seqpos)]) == 0:
        raise InvalidArgumentError(
            f"{given} leaves no position: choose a start below the stop, both inside the context."
        )
