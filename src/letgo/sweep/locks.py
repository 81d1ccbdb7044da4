"""Locks of files: one writer for a sweep's folder, one process for a cell.

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
from typing import IO, Literal

SWEEP_LOCK = ".sweep.lock"
"""In a sweep's folder: held alone by a whole sweep, shared by those that run a part of its cells."""
STATE_LOCK = ".state.lock"
"""In a sweep's folder: held while its state is read from the run directories and written."""
CLAIMS = ".claims"
"""In a sweep's folder: a file a run, locked by the process that is at work on it."""

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
        held = _take(handle, how) != "taken"
        if held and not shared:
            handle.truncate(0)
            handle.write(f"{socket.gethostname()} {os.getpid()}\n")
            handle.flush()
        yield held


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
            return _take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) != "no locks"
    finally:
        path.unlink(missing_ok=True)


def _take(handle: IO[str], how: int) -> Literal["held", "taken", "no locks"]:
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
