"""Carrying out erasure requests: one run on the rows of all that are open, and what became of each subject."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.base import RETRAINED, Sample
from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.files import read_json, remove_abandoned, write_json, write_json_lines
from letgo.core.locks import LOCK_FILE, only_writer
from letgo.core.progress import Reporter, usual
from letgo.data.rows import Row, read_rows
from letgo.metrics.judgement import FORGOTTEN_SETS, REVEALING, revealed
from letgo.runs import Index, root_of
from letgo.runs.register import (
    AS_IT_IS,
    Outcome,
    Request,
    SubjectOutcome,
    change_requests,
    check_requests,
    find_request,
    read_register,
)
from letgo.runs.results import Result, is_run, read_result, read_samples
from letgo.training.config import UnlearnConfig, make_config, resolved_settings
from letgo.training.run_directory import finished_result, left_to_do
from letgo.training.unlearn import unlearn

FORGET_FILE, RETAIN_FILE, REQUESTS_FILE, RUN = "forget.jsonl", "retain.jsonl", "requests.json", "run"
"""In the output folder: the rows that were made, which requests they are of, and the run's directory."""


@dataclass(frozen=True)
class Erased:
    """What came of a run on requests: where it lies, its record, the requests with their outcomes, and the models of
    the same base on which they are still to be carried out, by the index of runs in `root`."""

    directory: Path
    result: Result
    requests: list[Request]
    to_do: list[str]
    root: Path | None


def run_requests(
    register: str | Path,
    data: str | Path,
    output: str | Path,
    config: UnlearnConfig,
    *,
    requests: Sequence[str] = (),
    retain: str | Path | None = None,
    everyone: bool = False,
    resume: bool = False,
    root: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Erased:
    """Unlearn the rows of all open requests in one run, and write what became of each subject into the register.

    Args:
        register: the requests' file.
        data: rows as in `letgo.data.rows.read_rows`, whose `group` names the subject. Rows of the requests' subjects
            are the forget set, those of nobody who ever asked are the retain set.
        output: a folder that is still to be made, for the two sets and the run.
        config: the run's settings, without data.
        requests: ids; by default all that are open on this model, or still revealed.
        retain: rows to keep, in place of the rest of the data; those of subjects who asked are left out.
        everyone: take the requests that are done too: for a run from the original model, or to measure them again.
        resume: go on with a run that was cut off, with the requests that it was begun with.
        root: the folder whose index of runs says which other models there are; by default the output's.
        reporter: where progress goes.

    Raises:
        UserError: no request is open; a subject has no row; the settings name data; the output is used; or as of
            `unlearn`.
    """
    register, output, reporter = Path(register), Path(output), usual(reporter)
    _check_settings(config)
    check_requests(register, requests)
    with only_writer(output, make=True):
        # Whoever wrote here before has ended.
        remove_abandoned(output, older_than=0)
        if resume and (output / REQUESTS_FILE).is_file():
            chosen = _begun_with(output, read_register(register))
        else:
            known = read_register(register)
            # Cut off before it was said which requests they are of, the sets are made again.
            again = {FORGET_FILE, RETAIN_FILE} if resume else set()
            if any(path.name not in {LOCK_FILE, *again} for path in output.iterdir()):
                raise UserError(f"output directory {output} is not empty; name another one, or go on with --resume")
            chosen = _chosen(known, requests, config.model, everyone)
            _write_sets(output, known, chosen, data, retain, reporter)
        result = _unlearned(config, output, resume, reporter)
        outcomes = {one.id: outcome_of(one, output / RUN, result, config.model, register) for one in chosen}
        change_requests(register, lambda one: one.with_outcome(outcomes[one.id]) if one.id in outcomes else one)
    done = [request for request in read_register(register) if request.id in outcomes]
    indexed = Path(root) if root is not None else root_of(output)
    return Erased(output / RUN, result, done, still_to_do(done, config.model, indexed), indexed)


def _check_settings(config: UnlearnConfig) -> None:
    if given := [name for name in ("benchmark", "forget", "retain", "evaluate") if getattr(config, name)]:
        raise UserError(
            f"{given[0]}: the requests say what is to be forgotten; leave {given[0]} out, and name the rows with --data"
        )


# -- which requests, and which rows ----------------------------------------------------------------------------------


def _chosen(known: Sequence[Request], ids: Sequence[str], model: str, everyone: bool) -> list[Request]:
    """The requests to carry out on a model: those named; else those that no run in its line has carried out."""
    if ids:
        return [find_request(known, id) for id in dict.fromkeys(ids)]
    line, _ = line_of(model)
    chosen = [request for request in known if everyone or not _clean_in(request, line)]
    if not chosen:
        raise UserError("no request is open: all are done on this model; --all takes them again")
    return chosen


def _clean_in(request: Request, line: Iterable[str]) -> bool:
    """Whether a run of a line carried a request out, and revealed nobody afterwards."""
    runs = set(line)
    return any(outcome.run in runs and outcome.clean for outcome in request.outcomes)


def line_of(model: str) -> tuple[list[str], str]:
    """The ids of the runs that a model comes of, the newest first, and the model before the first of them."""
    line: list[str] = []
    while is_run(Path(model)):
        result = read_result(Path(model))
        if result.evaluation or result.run_id in line:
            break
        line.append(result.run_id)
        model = str(result.config.get("model") or "")
    return line, os.path.realpath(model) if os.path.exists(model) else model


def _begun_with(output: Path, known: Sequence[Request]) -> list[Request]:
    begun = read_json(output / REQUESTS_FILE)
    ids = begun.get("requests") if isinstance(begun, dict) else None
    if not isinstance(ids, list):
        raise UserError(f"{output / REQUESTS_FILE} names no requests: it is damaged; name another output")
    return [find_request(known, str(id)) for id in ids]


def _write_sets(
    output: Path,
    known: Sequence[Request],
    chosen: Sequence[Request],
    data: str | Path,
    retain: str | Path | None,
    reporter: Reporter,
) -> None:
    """Write the forget and the retain set of requests, for their owner alone to read; which requests last."""
    rows = read_rows(data, name="data")
    subjects = {subject: request.id for request in chosen for subject in request.subjects}
    groups = {str(row.fields["group"]) for row in rows if row.fields.get("group") is not None}
    for subject, id in subjects.items():
        if subject not in groups:
            raise UserError(
                f"request {id}: no row of {data} is of the group {subject!r}{did_you_mean(subject, groups)}\n"
                "  each row's 'group' names its subject; or leave the request out (--request ID, of the others)"
            )
    # Whoever asked once is not to be taught again.
    asked = {subject for request in known for subject in request.subjects}
    forget = [row for row in rows if row.group in subjects]
    kept = read_rows(retain, name="retain set") if retain is not None else rows
    keep = [row for row in kept if row.group not in asked]
    nobodys = sum(row.fields.get("group") is None for row in keep)
    if nobodys and retain is None:
        reporter.say(f"  {nobodys} rows have no group: they are taken to be about nobody who asked, and are kept")
    if mentions := [row for row in keep if any(name in _text(row) for name in asked)]:
        reporter.say(
            f"  {len(mentions)} rows to be kept name somebody who asked (the first at {mentions[0].where}): are they "
            "of the right group?"
        )
    reporter.say(
        f"  {len(chosen)} requests, {len(subjects)} subjects: {len(forget)} rows to forget, {len(keep)} to keep"
    )
    write_json_lines(output / FORGET_FILE, (row.fields for row in forget), private=True)
    (output / RETAIN_FILE).unlink(missing_ok=True)
    if keep:
        write_json_lines(output / RETAIN_FILE, (row.fields for row in keep), private=True)
    write_json(output / REQUESTS_FILE, {"requests": [request.id for request in chosen]})


def _text(row: Row) -> str:
    return f"{row.context} {row.target}"


def _unlearned(config: UnlearnConfig, output: Path, resume: bool, reporter: Reporter) -> Result:
    """The record of the run on the sets: made, gone on with, or as it is where it is finished."""
    settings = {"forget": str(output / FORGET_FILE), "output_dir": str(output / RUN)}
    if (output / RETAIN_FILE).is_file():
        settings["retain"] = str(output / RETAIN_FILE)
    job = make_config(resolved_settings(config) | settings, where="requests")
    finished = finished_result(output / RUN)
    if finished is not None and not left_to_do(output / RUN, job, finished):
        return finished
    going_on = resume and (output / RUN).is_dir() and any((output / RUN).iterdir())
    return unlearn(job, resume=going_on, reporter=reporter).result


# -- what became of them ---------------------------------------------------------------------------------------------


def outcome_of(request: Request, directory: Path, result: Result, model: str, register: Path) -> Outcome:
    """What a run's record says of a request's subjects."""
    rows = read_samples(directory)
    stages = dict[str, list[Mapping[str, Any]]]()
    for row in rows:
        stages.setdefault(row["stage"], []).append(row)
    retrained = [Sample.from_row(row) for row in stages.get(f"reference:{RETRAINED}", [])]
    before = set(revealed([Sample.from_row(row) for row in stages.get("before", [])], retrained))
    people = result.judgement.subjects if result.judgement else None
    by: dict[str, list[str]] = {AS_IT_IS: people.after if people else []}
    by |= {attack.label: attack.revealed for attack in result.attacks}
    asked = {label: _asked(stages.get(f"attack:{label}", [])) for label in by if label != AS_IT_IS}
    always = _asked(stages.get("after", []))
    return Outcome(
        run=result.run_id,
        path=os.path.relpath(directory, register.parent),
        model=model,
        base=line_of(model)[1],
        created=result.created,
        word=result.judgement.word if result.judgement else None,
        attacks=[attack.label for attack in result.attacks],
        subjects={
            subject: SubjectOutcome(
                before=subject in before,
                revealed=any(subject in names for names in by.values()) if people and subject in always else None,
                by=[label for label, names in by.items() if subject in names],
                not_asked_by=[label for label, names in asked.items() if subject not in names],
            )
            for subject in request.subjects
        },
    )


def _asked(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The groups that were asked something whose answer can give them away, and that an attacker was not given."""
    return {
        row["group"]
        for row in rows
        if row["set"] in FORGOTTEN_SETS and not row.get("seen") and REVEALING.keys() & row["scores"].keys()
    }


def still_to_do(requests: Sequence[Request], model: str, root: Path | None) -> list[str]:
    """The models of the same base, by the index of runs, in whose line no run has carried these requests out; each with
    the requests. Those that a run went on from are not counted: its model has taken their place."""
    if root is None:
        return []
    index = Index(root)
    _, base = line_of(model)
    lines = {}
    for record in index.all():
        if record.fields["kind"] == "unlearn" and record.status != "failed":
            directory = index.root / record.path
            line, start = line_of(str(directory))
            if line and start == base:
                lines[directory] = line
    passed = {run for line in lines.values() for run in line[1:]}
    left = {
        directory: [request.id for request in requests if not _clean_in(request, line)]
        for directory, line in lines.items()
        if line[0] not in passed
    }
    return [f"{directory}: {', '.join(ids)}" for directory, ids in left.items() if ids]
