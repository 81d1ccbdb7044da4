"""The errors a user can cause or meet; the command turns each into one message and an exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class LetgoError(Exception):
    """Base of every error that letgo raises on purpose. The command exits 1 on it, without a traceback."""

    exit_code = 1


class UserError(LetgoError):
    """A mistake in what the user gave: a file, a field, a value. Says what, where, and the way out (exit 2)."""

    exit_code = 2


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Within: a `UserError` begins with the place where the mistake is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


class NonFiniteLossError(LetgoError):
    """A loss or a score that is NaN or infinite. Raised at once: a poisoned run is worth nothing."""


class EmptyScoreError(LetgoError):
    """A metric or an attack was about to be computed over zero samples."""


def first_line(error: BaseException) -> str:
    """What a library said, short enough for a message of ours; the error's kind where it said nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
