"""One run of a sweep, in whatever process it runs: unlearned, attacked, or recorded as failed."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from typing import Literal

from letgo.attacks.engine.spec import missing_attacks
from letgo.core.errors import LetgoError, UserError, WorldError, as_world_error
from letgo.core.files import read_json, write_json
from letgo.core.locks import locked
from letgo.core.own import recorded_code
from letgo.report.card import write_model_card
from letgo.runs import unrecorded
from letgo.runs.documents import validated
from letgo.runs.record import TAGS_FILE, write_tags
from letgo.runs.results import Result, Strict, is_run, read_result
from letgo.sweep.workers import CellTask
from letgo.training.attack import attack
from letgo.training.config import make_config
from letgo.training.run_directory import unpublished, unsettled
from letgo.training.unlearn import unlearn

ERROR_FILE = "error.json"
"""In the directory of a run that failed: the error's message."""
SCORES = ".scores"
"""In a sweep's folder: what was scored of the models that its runs have in common."""


class _Failure(Strict):
    """What `error.json` holds."""

    error: str
    traceback: str = ""


@dataclass(frozen=True)
class CellOutcome:
    """What a run's directory has: a result, or why there is none."""

    result: Result | None
    error: str = ""


def outcome(task: CellTask) -> CellOutcome | None:
    """What is known of a task from its directory; None while it is still to be done, or done in part."""
    error = task.directory / ERROR_FILE
    try:
        if os.path.lexists(error):
            return CellOutcome(None, validated(error, _Failure, read_json(error)).error)
        if not is_run(task.directory):
            return None
        result = read_result(task.directory)
    except UserError as damage:
        # The others can be run and shown all the same.
        return CellOutcome(None, str(damage))
    if result.status == "failed":
        return CellOutcome(None, "; ".join(result.reasons))
    if _missing(task, result) or unsettled(task.directory, result):
        return None
    return CellOutcome(result)


def run_task(task: CellTask) -> Literal["over", "busy"]:
    """Do what is still to be done of a task; "busy" where another process is at work on it.

    A failure is written into the run's directory; one of the machine beneath (`WorldError`) is raised: the task is not
    to blame. The index is left alone: the sweep writes it, for several machines can't write one SQLite file.
    """
    # What the grid names is the user's own: whoever runs it has written it, or read it.
    with locked(task.claim) as mine, unrecorded(), recorded_code(True):
        if not mine:
            return "busy"
        # Its end may have come between the sweep's look at it and this claim.
        if outcome(task) is None:
            _do(task)
    return "over"


def _do(task: CellTask) -> None:
    directory, shared = task.directory, task.directory.parents[1] / SCORES
    try:
        recorded = read_result(directory) if is_run(directory) else None
        if recorded is None or recorded.status == "failed" or unpublished(directory):
            config = make_config({**task.settings, "output_dir": str(directory)}, where=directory.name)
            unlearn(config, resume=directory.is_dir(), shared_scores=shared)
        elif unsettled(directory, recorded):
            write_model_card(directory, recorded)
        if task.tags and not (directory / TAGS_FILE).is_file():
            write_tags(directory, tuple(task.tags))
        if missing := _missing(task, read_result(directory)):
            trusted = bool(task.settings.get("trust_remote_code"))
            attack(directory, missing, shared_scores=shared, trust_remote_code=trusted)
    except WorldError:
        raise
    except LetgoError as error:
        write_error(task, str(error))
    except Exception as error:
        if (world := as_world_error(error)) is not None:
            raise world from error
        write_error(task, f"{type(error).__name__}: {error}", traceback.format_exc())


def _missing(task: CellTask, result: Result) -> list[str]:
    """The attacks that are still to be made; a collapsed run is not attacked."""
    if result.status != "finished":
        return []
    return missing_attacks(task.attacks, result)


def write_error(task: CellTask, message: str, trace: str = "") -> None:
    """Record a task as failed."""
    task.directory.mkdir(parents=True, exist_ok=True)
    document = {"error": message} | ({"traceback": trace} if trace else {})
    write_json(task.directory / ERROR_FILE, document)
