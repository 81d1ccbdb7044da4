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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from letgo.core import processes
from letgo.core.errors import UserError

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
            handle.truncate(0)
            handle.write(f"{socket.gethostname()} {os.getpid()}\n")
            handle.flush()
        yield held


_WRITING: set[Path] = set()
"""The directories that this process holds by `only_writer`."""


@contextlib.contextmanager
def only_writer(directory: Path | None) -> Iterator[None]:
    """Hold a directory's lock for the block, in the first process of a launcher; None holds nothing. All its processes
    must call it, with the same directory.

    Within a block of this process that holds it already (a run that attacks what it saved) nothing happens.

    Raises:
        UserError: another process holds it.
    """
    resolved = None if directory is None else directory.resolve()
    if resolved is None or resolved in _WRITING:
        yield
        return
    with contextlib.ExitStack() as stack:

        def hold() -> None:
            # The lock is the directory's own, so that no file of it stays behind.
            handle = os.open(resolved, os.O_RDONLY)
            stack.callback(os.close, handle)
            if take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) == "taken":
                raise UserError(f"another process is at work in {directory}: wait until it has ended")

        processes.first_does(hold)
        _WRITING.add(resolved)
        stack.callback(_WRITING.discard, resolved)
        yield


def holder(path: Path) -> str:
    """Who last held a file's lock alone: the machine's name and the process's number; empty where nobody did."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def has_locks(folder: Path) -> bool:
    """Whether the file system that a folder lies on has locks."""
    path = folder / f".locks-{os.getpid()}"
    try:
        with open(path, "a+", encoding="utf-8") as handle:
            return take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) != "no locks"
    finally:
        path.unlink(missing_ok=True)


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
