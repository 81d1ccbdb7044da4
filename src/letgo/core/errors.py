"""The errors a user can cause or meet; the command turns each into one message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator


class LetgoError(Exception):
    """Base of every error that letgo raises on purpose. The command exits 1 on it, without a traceback."""

    exit_code = 1

    def __init__(self, *message: object) -> None:
        super().__init__(*("\n".join(map(_readable, str(part).split("\n"))) for part in message))


def _readable(line: str, most: int = 2000) -> str:
    """A line of a message; of one that repeats what nobody wrote by hand, its two ends."""
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 4 :]}"


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


class WorldError(LetgoError):
    """A failure of the machine beneath: a full disk, a folder that is gone, too little memory. What was finished is
    kept, and the same command goes on once the cause is mended."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MEMORY = ("MemoryError", "OutOfMemoryError", "DefaultCPUAllocator")
_WRITERS = ("PytorchStreamWriter", "inline_container", "iostream error", "Error while serializing")
"""In the messages of libraries that write past Python, and raise what is no `OSError`."""


def not_writable(what: object, error: OSError, way: str = "name another folder") -> LetgoError:
    """The error of a place that can't be written to: the user's, who named it, unless the machine failed there.

    Args:
        way: what the user can do.
    """
    kind = WorldError if error.errno in {*_FULL, errno.EIO} else UserError
    return kind(f"{what} can't be written to ({error.strerror or error}): {way}")


def as_world_error(error: BaseException) -> WorldError | None:
    """An error as a failure of the machine, where it is one."""
    if isinstance(error, WorldError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{error.filename}: " if error.filename else ""
        room = "; make room there, or name another folder" if error.errno in _FULL else ""
        return WorldError(f"{place}{error.strerror or error}{room}")
    text = first_line(error)
    if any(word in f"{type(error).__name__} {text}" for word in _MEMORY):
        return WorldError(f"not enough memory ({text}); `letgo plan` says what a run needs")
    if isinstance(error, sqlite3.Error) or any(word in text for word in _WRITERS):
        return WorldError(f"a file could not be written ({text}); is the disk full?")
    return None


def first_line(error: BaseException) -> str:
    """What a library said, short enough for a message of ours; the error's kind where it said nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
