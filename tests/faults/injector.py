"""Faults at the n-th file event of a process: whatever Python opens for writing, renames, removes or makes below a
folder, and what safetensors and torch write past Python.

    python -m tests.faults.injector KIND N FOLDER LETGO-WORDS…

runs the command with a fault of that kind at event N; with N = 0 nothing happens, and the number of events is written
to FOLDER.events.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

KINDS = ("error", "full", "kill", "interrupt")
"""error: the call fails (EIO). full: from here on no file can grow. kill: SIGKILL. interrupt: Ctrl-C."""
_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "sqlite3.connect")
"""Python's audit events whose first argument is the path."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Injector:
    """Counts the events below a folder, and makes one of them fail."""

    def __init__(self, kind: str, at: int, folder: Path) -> None:
        self.kind, self.at, self.folder = kind, at, f"{folder}{os.sep}"
        self.events: list[str] = []
        self.busy = False

    def install(self) -> None:
        import safetensors.torch
        import torch

        # Both write past Python: what they write is cut in half before the fault.
        safetensors.torch.serialize_file = self._watched(safetensors.torch.serialize_file, 1)
        torch.save = self._watched(torch.save, 1)
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITES:
                self.met("open", path)
        elif event in _EVENTS:
            self.met(event, args[0])

    def met(self, event: str, path: Any) -> None:
        """An event: the fault, if it is its turn."""
        if self.busy or not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))
        if not name.startswith(self.folder):
            return
        self.events.append(f"{event} {name.removeprefix(self.folder)}")
        if len(self.events) == self.at:
            self.strike(name)

    def strike(self, name: str) -> None:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        elif self.kind == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        else:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)

    def _watched(self, write: Any, position: int) -> Any:
        @functools.wraps(write)
        def watched(*args: Any, **kwargs: Any) -> Any:
            target = args[position] if len(args) > position else kwargs.get("filename", kwargs.get("f"))
            if not isinstance(target, str | os.PathLike):
                return write(*args, **kwargs)
            if len(self.events) + 1 == self.at and self.kind != "full":
                self.busy = True
                write(*args, **kwargs)
                with open(target, "r+b") as file:
                    file.truncate(os.path.getsize(target) // 2)
                self.busy = False
            self.met("write", target)
            return write(*args, **kwargs)

        return watched


def main() -> None:
    kind, at, folder, *words = sys.argv[1:]
    injector = Injector(kind, int(at), Path(folder))
    from letgo.cli import main as letgo

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    injector.install()
    sys.argv = ["letgo", *words]
    try:
        letgo()
    finally:
        if not injector.at:
            Path(f"{folder}.events").write_text("\n".join(injector.events), encoding="utf-8")


if __name__ == "__main__":
    main()
