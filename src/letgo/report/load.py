"""Finding run directories and reading what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.runs.results import CONFIG_FILE, HISTORY_FILE, SAMPLES_FILE, Result, is_run, read_result
from letgo.runs.sweeps import SWEEP_FILE, Sweep, read_sweep

DEPTH = 2
"""How many levels below a given folder are searched for runs."""


@dataclass(frozen=True)
class LoadedRun:
    """A run directory with its result; samples and history are read when asked for, as they are large."""

    directory: Path
    result: Result

    def samples(self) -> list[dict[str, Any]]:
        return self._rows(SAMPLES_FILE)

    def history(self) -> list[dict[str, Any]]:
        return self._rows(HISTORY_FILE)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / name
        return read_json_lines(path) if path.is_file() else []

    @property
    def has_config(self) -> bool:
        return (self.directory / CONFIG_FILE).is_file()


def find_runs(directories: Sequence[Path]) -> list[LoadedRun]:
    """The runs in the given directories, in order, each once; a `UserError` where a directory is missing, or neither is
    a run nor holds one within `DEPTH` levels."""
    runs: dict[Path, LoadedRun] = {}
    if not directories:
        raise UserError("no run directory was given: letgo report DIR… --output report.html")
    for directory in directories:
        if not directory.is_dir():
            what = "is a file, not a directory" if directory.exists() else "does not exist"
            raise UserError(f"{directory} {what}; give a run directory, or a folder that holds runs")
        paths = list(_walk(directory, DEPTH))
        if not paths:
            raise UserError(f"{directory} holds no run: there is no result.json in it or up to {DEPTH} levels below")
        for path in paths:
            if path.resolve() not in runs:
                runs[path.resolve()] = LoadedRun(path, read_result(path))
    return list(runs.values())


def find_sweep(directory: Path) -> Sweep | None:
    """The sweep in a directory, if there is one."""
    return read_sweep(directory) if (directory / SWEEP_FILE).is_file() else None


def _walk(directory: Path, depth: int) -> Iterator[Path]:
    sweep = find_sweep(directory)
    if sweep is not None:
        # Its cells alone: what its tuning tried beside them was never meant to be compared.
        yield from (path for path in sweep.run_directories(directory) if is_run(path))
    elif is_run(directory):
        yield directory
    elif depth:
        for child in sorted(directory.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _walk(child, depth - 1)
