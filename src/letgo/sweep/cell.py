"""One run of a sweep, in whatever process it runs: unlearned, attacked, or recorded as failed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.attacks.run import attack, plan_attack
from letgo.config import make_config
from letgo.errors import LetgoError, UserError
from letgo.results import Result, is_run, read_result, write_text
from letgo.runs import record_run
from letgo.runs.record import TAGS_FILE, write_tags
from letgo.unlearning import unlearn
from letgo.workers import WORKERS_LOCK

ERROR_FILE = "error.json"
"""In the directory of a run that failed: what was said."""


@dataclass(frozen=True)
class Task:
    """A run to be made: its directory, its settings, the attacks on it, and its tags."""

    directory: Path
    settings: Mapping[str, Any]
    attacks: Sequence[str]
    tags: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """What a run's directory says: a result, or why there is none."""

    result: Result | None
    error: str = ""

    @property
    def failed(self) -> bool:
        return self.result is None


def outcome(task: Task) -> Outcome | None:
    """What is known of a task from its directory; None while it is still to be done, or done in part."""
    if (task.directory / ERROR_FILE).is_file():
        return Outcome(None, json.loads((task.directory / ERROR_FILE).read_text(encoding="utf-8"))["error"])
    if not is_run(task.directory):
        return None
    result = read_result(task.directory)
    if result.status == "failed":
        return Outcome(None, "; ".join(result.reasons))
    return Outcome(result) if not _missing(task, result) else None


def run_task(task: Task) -> None:
    """Do what is still to be done of a task. Nothing is raised: a failure is written into the run's directory."""
    try:
        if not is_run(task.directory) or read_result(task.directory).status == "failed":
            settings = {**task.settings, "output_dir": str(task.directory)}
            unlearn(make_config(settings, where=task.directory.name), resume=task.directory.is_dir())
        if task.tags and not (task.directory / TAGS_FILE).is_file():
            write_tags(task.directory, tuple(task.tags))
            record_run(task.directory, lambda _: None)
        missing = _missing(task, read_result(task.directory))
        if missing:
            attack(task.directory, missing)
    except LetgoError as error:
        write_error(task, str(error))
    except Exception as error:
        write_error(task, f"{type(error).__name__}: {error}", traceback.format_exc())


def _missing(task: Task, result: Result) -> list[str]:
    """The attacks that are still to be made; a collapsed run is not attacked."""
    if result.status != "finished":
        return []
    made = {attack.label for attack in result.attacks}
    return [spec for spec in task.attacks if plan_attack(spec).label not in made]


def write_error(task: Task, message: str, trace: str = "") -> None:
    """Record a task as failed."""
    task.directory.mkdir(parents=True, exist_ok=True)
    document = {"error": message} | ({"traceback": trace} if trace else {})
    write_text(task.directory / ERROR_FILE, json.dumps(document, ensure_ascii=False, indent=2) + "\n")


@contextlib.contextmanager
def alone(folder: Path, patience: float = 30.0) -> Any:
    """Hold a sweep's folder alone; waits for the workers of a sweep that was killed, and refuses a second sweep."""
    with open(folder / ".sweep.lock", "a") as own, open(folder / WORKERS_LOCK, "a") as workers:
        for handle, what in ((own, "another sweep is"), (workers, "workers of an earlier sweep are")):
            start = time.monotonic()
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if handle is own or time.monotonic() - start > patience:
                        raise UserError(f"{what} at work in {folder}; wait for it, or stop it") from error
                    time.sleep(0.1)
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield
