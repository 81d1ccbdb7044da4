"""A small grid whose cells take a moment, and what is compared of two sweeps of it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import yaml

from letgo.sweep.grid import read_grid
from letgo.sweep.table import TABLE_FILE
from tests import tiny


@pytest.fixture(autouse=True)
def _own_index(monkeypatch):
    """The index beside the runs: none that somebody has further up."""
    monkeypatch.delenv("LETGO_RUNS", raising=False)


@pytest.fixture
def small(tmp_path, model_directory):
    """Gives `small(output, **changes)`: a grid of two cells, written to a file of its own; and its path."""
    forget = tiny.write_jsonl(tmp_path / "forget.jsonl", tiny.FORGET)
    retain = tiny.write_jsonl(tmp_path / "retain.jsonl", tiny.RETAIN)

    def make(output, *, steps=4, save_steps=2, read=None, **changes):
        document = {
            "output_dir": str(tmp_path / output),
            "base": {
                "model": str(model_directory),
                "forget": str(forget),
                "retain": str(retain),
                "max_steps": steps,
                "save_steps": save_steps,
                "per_device_train_batch_size": 2,
                "use_cpu": True,
            },
            "grid": {"seed": [0, 1]},
            **changes,
        }
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(document))
        return read_grid(path, **(read or {}))

    return make


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def task(self, name, total):
        from letgo.core.progress import Quiet

        return Quiet().task(name, total)


@pytest.fixture
def heard():
    return Heard()


def products(folder):
    """What a sweep is compared by: its table, and every cell's weights."""
    weights = {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/model.safetensors")}
    return (folder / TABLE_FILE).read_bytes(), weights


class Killer(threading.Thread):
    """Kills the process that is at work on a cell of a sweep, once it has written a checkpoint; so many times."""

    def __init__(self, folder, times=1):
        super().__init__(daemon=True)
        self.folder, self.times, self.killed, self.over = folder, times, [], False

    def run(self):
        while not self.over and len(self.killed) < self.times:
            for checkpoint in self.folder.glob("runs/*/checkpoint-*"):
                claim = self.folder / ".claims" / checkpoint.parent.name
                pid = int((claim.read_text() or "x 0").split()[1]) if claim.is_file() else 0
                if pid and pid != os.getpid() and pid not in self.killed:
                    self.killed.append(pid)
                    os.kill(pid, signal.SIGKILL)
                    break
            time.sleep(0.002)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over = True
        self.join()
