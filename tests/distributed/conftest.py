"""Runs in two processes, one thread each, as `torchrun` starts them, beside the same runs in one. What is about the
launchers is started by them; the rest begins with everything imported (`tests/warm.py`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import tiny, warm
from tests.once import made_once
from tests.warm import ROOT

LAUNCH = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def launch(words: list[str], by: list[str] = LAUNCH) -> subprocess.CompletedProcess[str]:
    """Two processes of a command, after a launcher; it begins them anew, with nothing imported."""
    return warm.run([*by, *words], PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")


def together(jobs: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What each of two processes says of its jobs (`tests/distributed/worker.py`)."""
    asked = folder / "jobs.json"
    asked.write_text(json.dumps(jobs), encoding="utf-8")
    done = warm.run(["-m", "tests.distributed.worker", str(asked), str(folder / "told.json")], ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    return answers(folder)


def answers(folder: Path) -> list[dict[str, Any]]:
    """What the two processes said in this folder."""
    return [json.loads((folder / f"told.json.{number}").read_text(encoding="utf-8")) for number in range(2)]


def weights(directory: Any) -> dict[str, Any]:
    return load_file(Path(directory) / "model.safetensors")


def distance(one: Any, other: Any) -> float:
    """The largest difference of two saved models' weights."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    return made_once(
        tmp_path_factory, "tiny-model", lambda folder: tiny.save(folder, tiny.make_model(), tiny.make_tokenizer())
    )
