"""Finding run directories and reading what they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError
from letgo.runs.results import CONFIG_FILE, HISTORY_FILE, SAMPLES_FILE, Result, is_run, read_result
from letgo.runs.sweeps import SWEEP_FILE, Sweep, read_sweep

DEPTH = 2
"""How many levels below a given folder are searched for runs."""


@dataclass(frozen=True)
class Run:
    """A run directory with its result; samples and history are read when asked for, as they are large."""

    directory: Path
    result: Result

    def samples(self) -> list[dict[str, Any]]:
        return _lines(self.directory / SAMPLES_FILE)

    def history(self) -> list[dict[str, Any]]:
        return _lines(self.directory / HISTORY_FILE)

    @property
    def has_config(self) -> bool:
        return (self.directory / CONFIG_FILE).is_file()


def find_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in the given directories, in order, each once.

    Raises:
        UserError: a directory is missing, or neither is a run nor holds one within `DEPTH` levels.
    """
    found: dict[Path, Run] = {}
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
            if path.resolve() not in found:
                found[path.resolve()] = Run(path, read_result(path))
    return list(found.values())


def find_sweep(directory: Path) -> Sweep | None:
    """The sweep that lies in a directory, if one does."""
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


def _lines(path: Path) -> list[dict[str, Any]]:
    """A JSON-lines file's rows, none if there is no such file; a broken line is a `UserError` with its number."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: not a JSON object")
            rows.append(row)
    return rows
