"""Finding run directories and reading what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError
from letgo.runs.results import CONFIG_FILE, Result, is_run, read_history, read_result, read_samples
from letgo.runs.sweeps import SWEEP_FILE, Sweep, read_sweep

DEPTH = 2
"""How many levels below a given folder are searched for runs."""


@dataclass(frozen=True)
class LoadedRun:
    """A run directory with its result; other files are read when asked for, as they are large. Of one that can't be
    read nothing is shown, and `problems` says so."""

    directory: Path
    result: Result
    problems: list[str] = field(default_factory=list, compare=False)

    def samples(self) -> list[dict[str, Any]]:
        return self.read(read_samples)

    def history(self) -> list[dict[str, Any]]:
        return self.read(read_history)

    def read(self, how: Callable[[Path], list[Any]]) -> list[Any]:
        """What a reader finds in the directory; nothing where that is damaged."""
        try:
            return how(self.directory)
        except UserError as error:
            self.problems.append(str(error))
            return []

    @property
    def has_config(self) -> bool:
        return (self.directory / CONFIG_FILE).is_file()


def find_runs(directories: Sequence[Path]) -> tuple[list[LoadedRun], list[str]]:
    """The runs in the given directories, in order, each once; and a message for each that can't be read.

    Raises:
        UserError: a directory is missing, or neither is a run nor holds one within `DEPTH` levels; or none of the runs
            can be read.
    """
    runs: dict[Path, LoadedRun] = {}
    problems: list[str] = []
    if not directories:
        raise UserError("no run directory was given: letgo report DIR… --output report.html")
    for directory in directories:
        if not directory.is_dir():
            what = "is a file, not a directory" if directory.exists() else "does not exist"
            raise UserError(f"{directory} {what}; give a run directory, or a folder that holds runs")
        known = len(problems)
        paths = list(_walk(directory, DEPTH, problems))
        if not paths and len(problems) == known:
            raise UserError(f"{directory} holds no run: there is no result.json in it or up to {DEPTH} levels below")
        for path in paths:
            if path.resolve() in runs:
                continue
            try:
                runs[path.resolve()] = LoadedRun(path, read_result(path))
            except UserError as error:
                problems.append(str(error))
    if not runs:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return list(runs.values()), list(dict.fromkeys(problems))


def find_sweep(directory: Path) -> Sweep | None:
    """The sweep in a directory, if there is one that can be read."""
    try:
        return _sweep(directory)
    except UserError:
        return None  # `find_runs` names it


def _sweep(directory: Path) -> Sweep | None:
    return read_sweep(directory) if os.path.lexists(directory / SWEEP_FILE) else None


def _walk(directory: Path, depth: int, problems: list[str]) -> Iterator[Path]:
    try:
        sweep, children = _sweep(directory), sorted(directory.iterdir())
    except UserError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{directory} can't be listed ({error.strerror or error})")
    else:
        if sweep is not None:
            # Its cells alone: what its tuning tried beside them was never meant to be compared.
            for path in sweep.run_directories(directory):
                if is_run(path):
                    yield path
                else:
                    problems.append(f"{directory / SWEEP_FILE} names {path}, which holds no result")
        elif is_run(directory):
            yield directory
        elif depth:
            for child in children:
                if child.is_dir() and not child.name.startswith("."):
                    yield from _walk(child, depth - 1, problems)
