"""What a worker process does first. Imports nothing heavy: what is imported later must find the loggers quiet."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path
from typing import IO

WORKERS_LOCK = ".workers.lock"
"""In a folder that workers write to: held shared by each while it lives."""

_HELD: list[IO[str]] = []


def start_worker(folder: str, threads: int, parent: int) -> None:
    """Initialise a worker process: its threads, and its end if the process that started it is gone.

    It holds a shared lock on the folder while it lives, so that work that is resumed after a kill waits for the old
    workers' end.
    """
    from letgo.progress import quiet_libraries, quiet_loggers

    quiet_loggers()
    quiet_libraries()
    import torch

    torch.set_num_threads(threads)
    handle = open(Path(folder) / WORKERS_LOCK, "a")  # noqa: SIM115  (held until the process ends)
    fcntl.flock(handle, fcntl.LOCK_SH)
    _HELD.append(handle)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
