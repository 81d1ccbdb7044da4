"""Locks of files and folders: one writer for a run's directory and a sweep's folder, one process for a cell.

They are the kernel's (`flock`): a process that is killed holds none. On NFS they are the server's, which all machines
see.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from letgo.core import processes
from letgo.core.errors import LetgoError, UserError, not_writable

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold a file's lock for the block; yields whether it was free (always, where the file system has no locks).

    Args:
        path: the file, made where it is missing; who holds it is written into it.
        shared: beside others that hold it shared.
        wait: until it is free, instead of asking once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened for reading as well: over NFS a shared lock needs that, and one that is held alone needs writing.
    with open(path, "a+", encoding="utf-8") as handle:
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        held = take(handle, how) != "taken"
        if held and not shared:
            _sign(handle)
        yield held


LOCK_FILE = ".letgo.lock"
"""In a directory that is being written: who writes it. Gone when the writer has ended."""
_WRITING: dict[Path, tuple[int, int] | None] = {}
"""The directories that this process holds by `only_writer`, each with the device and inode that it then had."""


@contextlib.contextmanager
def only_writer(directory: Path | None, *, make: bool = False) -> Iterator[None]:
    """Hold a directory's lock for the block, in the first process of a launcher; None holds nothing. All its processes
    must call it, with the same directory.

    Within a block of this process that holds it already (a run that attacks what it saved) nothing happens.

    Args:
        make: make the directory where it is missing. One that is still empty at the end is removed again.

    Raises:
        UserError: another process holds it; or it can't be written to.
    """
    resolved = None if directory is None else directory.resolve()
    if resolved is None or resolved in _WRITING:
        yield
        return
    with contextlib.ExitStack() as stack:
        identity: list[tuple[int, int]] = []

        def hold() -> None:
            try:
                if make:
                    stack.callback(_remove_empty, _make(resolved))
                stack.enter_context(_held(resolved / LOCK_FILE))
            except OSError as error:
                raise not_writable(f"directory {directory}", error) from error
            identity.append(_identity(resolved))

        processes.first_does(hold)
        _WRITING[resolved] = identity[0] if identity else None
        stack.callback(_WRITING.pop, resolved)
        yield


def check_held(directory: Path) -> None:
    """Raise a `LetgoError` where a directory that this process holds was removed since, or replaced by another."""
    before = _WRITING.get(directory.resolve())
    if before is not None and (not directory.is_dir() or _identity(directory) != before):
        raise LetgoError(
            f"{directory} was removed while this process was at work in it, and what was finished with it: run the "
            "command again"
        )


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino


def _make(directory: Path) -> list[Path]:
    """Make a directory; returns those that were missing, the innermost first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(directories: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):
        for directory in directories:
            directory.rmdir()


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock file for the block, and remove it at the end."""
    while True:
        with open(path, "a+", encoding="utf-8") as handle:
            if take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) == "taken":
                raise UserError(
                    f"another process ({holder(path) or 'just begun'}) is at work in {path.parent}: wait until it has "
                    "ended, or stop it"
                )
            # Whoever held it before may have removed the file between its opening and its locking here.
            try:
                current = os.stat(path).st_ino == os.fstat(handle.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if current:
                _sign(handle)
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _sign(handle: IO[str]) -> None:
    """Write into a lock file who holds it."""
    handle.truncate(0)
    handle.write(f"{socket.gethostname()} {os.getpid()}\n")
    handle.flush()


def holder(path: Path) -> str:
    """Who last held a file's lock alone: the machine's name and the process's number; empty where nobody did."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def has_locks(folder: Path) -> bool:
    """Whether the file system that a folder lies on has locks."""
    # Of no name, so that whoever is killed here leaves nothing.
    with tempfile.TemporaryFile(dir=folder) as handle:
        return take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) != "no locks"


def take(handle: IO[Any] | int, how: int) -> Literal["held", "taken", "no locks"]:
    """Take the lock of an open file or folder, as `fcntl.flock`'s flags say: "taken" where somebody else holds it."""
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return "no locks"
        # Over NFS EACCES may be the answer where somebody else has the lock.
        if not isinstance(error, BlockingIOError) and error.errno != errno.EACCES:
            raise
        return "taken"
    return "held"


def check_unused(output: Path | None) -> None:
    """Raise a `UserError` unless an output directory is still to be made, or empty."""
    if output is None or not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"output {output} is a file; name a directory")
    if any(path.name != LOCK_FILE for path in output.iterdir()):
        raise UserError(f"output directory {output} is not empty; name another one")
