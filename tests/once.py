"""What several test workers need alike is made once, by the first that asks, while the others wait."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` filled, made once in a session, however many workers and however often a fixture runs.

    Under `--dist worksteal` a module's tests may run on two workers, and on one worker with others between them, so
    that pytest makes the module's fixtures several times.
    """
    base = tmp_path_factory.getbasetemp()
    # Each worker's own base lies in the session's.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once" / name
    folder.parent.mkdir(exist_ok=True)
    done = folder.with_name(f"{name}.done")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
