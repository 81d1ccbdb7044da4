"""Finding run directories and reading what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.core.errors import UserError
from letgo.report.notebook import html_of
from letgo.runs.frames import table_of
from letgo.runs.results import CONFIG_FILE, Result, is_run, read_history, read_result, read_samples
from letgo.runs.sweeps import SWEEP_FILE, Sweep, read_sweep

FILES = {"samples": read_samples, "history": read_history}
"""The tables of a run that lie in files of their own."""
DEPTH = 2
"""How many levels below a given folder are searched for runs."""


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run directory with its result; other files are read when asked for, as they are large. Of one that can't be
    read nothing is shown, and `problems` says so."""

    directory: Path
    result: Result
    problems: list[str] = field(default_factory=list, compare=False)

    def __repr__(self) -> str:
        return f"<Run {self.directory}: {repr(self.result).partition(': ')[2]}"

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, the results, and figures of the training and of the attacks."""
        return html_of(self.result, self.history())

    def to_pandas(self, table: str = "metrics") -> Any:
        """A table of the run as a `pandas.DataFrame`: "metrics", "attacks" or "subjects" (`Result.to_pandas`),
        "samples" (a row for each model and question) or "history" (a row for each logged step)."""
        if table in FILES:
            return table_of(FILES[table](self.directory))
        return self.result.to_pandas(table)

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


def read_run(directory: Path | str) -> LoadedRun:
    """A run directory with its result, to look at; a missing or broken one is a `UserError`."""
    return LoadedRun(Path(directory), read_result(Path(directory)))


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
