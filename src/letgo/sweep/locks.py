"""Locks of files: one writer for a sweep's folder, one process for a cell.

They are the kernel's (`flock`): a process that is killed holds none, so nothing is ever left locked. On NFS the kernel
makes them locks of the server, which all machines see.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

SWEEP_LOCK = ".sweep.lock"
"""In a sweep's folder: held alone by a whole sweep, shared by those that run a part of its cells."""
STATE_LOCK = ".state.lock"
"""In a sweep's folder: held while its state is told from the run directories and written."""
CLAIMS = ".claims"
"""In a sweep's folder: a file a run, locked by the process that is at work on it."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold a file's lock for the block; gives whether it was to be had.

    Where the file system has no locks it always is (`has_locks`).

    Args:
        path: the file, made where it is missing; who holds it is written into it.
        shared: beside others that hold it shared.
        wait: until it is to be had, instead of asking once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened for reading as well: over NFS a shared lock needs that, and one that is held alone needs writing.
    with open(path, "a+", encoding="utf-8") as handle:
        held = _take(handle.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
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
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        path.unlink(missing_ok=True)
    return True


def _take(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError as error:
        # Over NFS a lock that somebody has may be told by EACCES.
        if error.errno == errno.EACCES:
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True
