"""`letgo verify`: whether a run's files are those that its record and its statement speak of; if not, which are not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from letgo.benchmarks import benchmark_of
from letgo.core.errors import UserError, first_line
from letgo.core.fingerprints import file_digests
from letgo.core.progress import Reporter, usual
from letgo.data.binding import data_key, key_id, key_path
from letgo.models.formats import EXPORT
from letgo.report.attestation import (
    RECORDS,
    facts_of,
    model_place,
    parts_of,
    read_statement,
)
from letgo.report.rescoring import rescore as score_anew
from letgo.report.signature import signature_problem
from letgo.runs.digests import base_digests, data_digests, differing, model_files
from letgo.runs.results import RESULT_FILE, SIGNATURE_FILE, STATEMENT_FILE, Result, read_result

OF_MODEL = ("weights", "tokenizer")
"""The parts that lie elsewhere where a record is of a model that was not made by the run."""


@dataclass(frozen=True)
class Problem:
    """A part that is not as it was: what it is, its file or set, and what is wrong."""

    part: str
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.part}: {self.name} {self.what}" if self.name else f"{self.part}: {self.what}"


@dataclass
class Verification:
    """What a check found. Passed is what has no problem; `unchecked` says what was not looked at, and how to."""

    problems: list[Problem] = field(default_factory=list)
    checked: dict[str, str] = field(default_factory=dict)
    """Each part that was looked at and found as it was."""
    unchecked: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}

    def note(self, part: str, problems: list[Problem], found: str) -> None:
        """Add what came of a part."""
        self.problems += problems
        self.checked[part] = found
        for problem in self.problems:
            self.checked.pop(problem.part, None)


def verify(
    directory: str | Path,
    *,
    key: str | Path | None = None,
    data: bool = False,
    base: bool = False,
    rescore: bool = False,
    reporter: Reporter | None = None,
) -> Verification:
    """Check a run's files against its statement and its record, and the statement against its signature.

    Args:
        directory: of a run, an evaluation, or attacks on a model. Without `attestation.json` the model's files alone
            are checked, against what `result.json` is bound to.
        key: the signer's public key (PEM). With it, a statement that is not signed is a problem.
        data: check the rows too, where their files are at hand; takes the owner's key.
        base: check the files of the model before unlearning too.
        rescore: score the model anew, and compare with the record.
        reporter: where progress goes.

    Raises:
        UserError: there is neither a statement nor a record that is bound to anything; a key can't be used; the data,
            the base or the model that is to be checked is not at hand.
    """
    directory, reporter, found = Path(directory), usual(reporter), Verification()
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    statement = _statement(directory, found)
    _signature(directory, key, found)
    result = _record(directory, statement, found)
    # A statement that is not the one signed says nothing of the other files.
    if statement is not None and not any(problem.part == "statement" for problem in found.problems):
        _against_statement(directory, statement, result, found, reporter)
    elif result is not None:
        _against_record(directory, result, found, reporter)
    if result is None:
        if data or base or rescore:
            found.unchecked.append(f"data, base and scores: {RESULT_FILE} can't be read")
        return found
    if data:
        _data(result, found)
    if base:
        _base(result, found, reporter)
    if rescore:
        _scores(directory, result, found, reporter)
    _say_unchecked(found, data=data, base=base, rescore=rescore)
    return found


def _statement(directory: Path, found: Verification) -> dict[str, Any] | None:
    if not os.path.lexists(directory / STATEMENT_FILE):
        return None
    try:
        return read_statement(directory)
    except UserError as error:
        found.problems.append(Problem("statement", STATEMENT_FILE, f"can't be read ({first_line(error)})"))
        return None


def _signature(directory: Path, key: str | Path | None, found: Verification) -> None:
    statement, signature = directory / STATEMENT_FILE, directory / SIGNATURE_FILE
    there = os.path.lexists(signature)
    if key is None and not os.path.lexists(statement):
        return
    if key is None:
        how = (
            "the signature: give the signer's public key (--key)"
            if there
            else "who made the statement: it is not signed"
        )
        found.unchecked.append(how)
    elif not os.path.lexists(statement):
        found.problems.append(Problem("statement", STATEMENT_FILE, "is missing"))
    elif not there:
        found.problems.append(Problem("signature", SIGNATURE_FILE, "is missing: the statement is not signed"))
    elif strange := [path for path in (statement, signature) if not path.is_file()]:
        # A pipe in its place would be waited for.
        parts = {statement: "statement", signature: "signature"}
        found.problems += [Problem(parts[path], path.name, "is no regular file") for path in strange]
    elif problem := signature_problem(statement, signature, Path(key)):
        part, what = problem
        found.problems.append(Problem(part, SIGNATURE_FILE if part == "signature" else STATEMENT_FILE, what))
    else:
        found.checked["signature"] = f"made with the key of {key}"


def _record(directory: Path, statement: Mapping[str, Any] | None, found: Verification) -> Result | None:
    """The run's record. One that can't be read is a problem of its own where nothing else tells of it."""
    try:
        return read_result(directory)
    except UserError as error:
        if statement is None and not found.problems:
            raise
        found.problems.append(Problem("record", RESULT_FILE, f"can't be read ({first_line(error)})"))
        return None


def _against_statement(
    directory: Path, statement: Mapping[str, Any], result: Result | None, found: Verification, reporter: Reporter
) -> None:
    """Hold each file against the statement, and the statement against the record."""
    stated = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    parts = {subject["name"]: _part(subject) for subject in statement["subject"]}
    record = _digests([RESULT_FILE], directory, None, reporter)
    # A record that was changed says nothing of the other files, where they lie, nor of the statement.
    intact = result is not None and record.get(RESULT_FILE) == stated.get(RESULT_FILE, "")
    place = model_place(directory, result) if intact and result is not None else None
    if not intact and not model_files(directory) and (lost := [n for n, part in parts.items() if part in OF_MODEL]):
        found.unchecked.append(f"{', '.join(lost)}: {RESULT_FILE}, which says where they are, was changed")
        stated, parts = ({name: each[name] for name in each if name not in lost} for each in (stated, parts))
    digests = _digests(stated, directory, place, reporter)
    bound = result.digests if intact and result is not None else None
    recorded = {} if bound is None else bound.model | bound.tokenizer
    problems = [
        _differs(name, parts[name], digests.get(name), recorded.get(name))
        for name, digest in stated.items()
        if digests.get(name) != digest
    ]
    for part in dict.fromkeys(parts.values()):
        names = [name for name in stated if parts[name] == part]
        found.note(part, [problem for problem in problems if problem.part == part], ", ".join(names))
    found.problems += [problem for problem in problems if problem.part not in parts.values()]
    if result is None:
        return
    for name, (part, path) in parts_of(directory, result).items():
        if name not in stated and (intact or path.is_relative_to(directory)):
            found.note(part, [Problem(part, name, "was added after the run was attested")], "")
    if intact:
        facts = facts_of(result)
        said = {"audit": facts["audit"]} | statement["predicate"]  # Statements of an older letgo have it not.
        others = [name for name, fact in facts.items() if said.get(name) != fact]
        wrong = [Problem("statement", STATEMENT_FILE, f"says other {name} than {RESULT_FILE}") for name in others]
        found.note("statement", wrong, "says what the record says")


def _digests(names: Iterable[str], directory: Path, place: Path | None, reporter: Reporter) -> dict[str, str]:
    """The digests of those of the attested files that are there."""
    paths = {name: path for name in names if (path := _path(directory, place, name)) is not None}
    return file_digests(paths, reporter=reporter)


def _differs(name: str, part: str, digest: str | None, recorded: str | None) -> Problem:
    """What is wrong where a file's digest is not the one stated: the file; or the statement, where the record has the
    file's digest."""
    if digest is None:
        return Problem(part, name, "is missing")
    if digest == recorded:
        what = f"has another digest of {name} than {RESULT_FILE}, which the file has too"
        return Problem("statement", STATEMENT_FILE, what)
    return Problem(part, name, "is not the file that was attested")


def _path(directory: Path, place: Path | None, name: str) -> Path | None:
    """Where an attested file is: in the run's directory; of a model that lies elsewhere, there."""
    elsewhere = [] if place is None else [place / name if place.is_dir() else place]
    return next(
        (path for path in (directory / name, *elsewhere) if path.is_file() and path.name == Path(name).name), None
    )


def _part(subject: Mapping[str, Any]) -> str:
    """Which part a file is: of the run's own files by their names, whatever a statement calls them."""
    name = subject["name"]
    if name in RECORDS:
        return RECORDS[name]
    if name.startswith(f"{EXPORT}/"):
        return "exported file"
    return str(subject.get("annotations", {}).get("part") or "file")


def _against_record(directory: Path, result: Result, found: Verification, reporter: Reporter) -> None:
    """Without a statement: hold the model's files against what the record is bound to."""
    if result.digests is None and not found.problems:
        raise UserError(
            f"{directory} has no {STATEMENT_FILE}, and its record is of an older letgo, which bound it to nothing: "
            "there is nothing to check\n  attest it as it is now: letgo attest"
        )
    parts = parts_of(directory, result)
    digests = file_digests({name: path for name, (_, path) in parts.items()}, reporter=reporter)
    wrong = [
        Problem(part, name, "is not the file that was saved" if name in digests else "is missing")
        for part, name in differing(result, digests)
    ]
    found.note("model", wrong, "the files that the record is bound to")
    own = ", ".join(name for name in RECORDS if name in parts)
    found.unchecked.append(f"{own}: nothing binds them but a statement (letgo attest) as it was made")


def _data(result: Result, found: Verification) -> None:
    """Hold the rows against the record's keyed digests."""
    bound = result.digests
    if bound is None or not bound.data:
        raise UserError("the record is bound to no data: there is nothing to check")
    key = data_key(lambda _: None, make=False)
    if key is None or key_id(key) != bound.data_key:
        what = f"there is no key at {key_path()}" if key is None else f"the key at {key_path()} is another one"
        raise UserError(f"{what}: checking data takes the key that its record was made with; name it in LETGO_DATA_KEY")
    now = data_digests(benchmark_of(result.config, recorded=True).contents, key)
    wrong = [
        Problem("data", f"the set {name}", "is missing" if name not in now else "holds other rows than the record's")
        for name, digest in bound.data.items()
        if now.get(name) != digest
    ]
    found.note("data", wrong, ", ".join(f"{name} ({digest.rows})" for name, digest in bound.data.items()))


def _base(result: Result, found: Verification, reporter: Reporter) -> None:
    """Hold the model before unlearning against the record."""
    bound, name = result.digests, str(result.config.get("model") or "")
    if bound is None or not bound.base:
        raise UserError("the record is bound to no model before unlearning: there is nothing to check")
    now = base_digests(name, reporter, remember=False)
    if not now:
        raise UserError(f"the model before unlearning, {name!r}, is not on this machine")
    wrong = [
        Problem("base", file, "is missing" if file not in now else "is not the file that was unlearned from")
        for file, digest in bound.base.items()
        if now.get(file) != digest
    ]
    found.note("base", wrong, ", ".join(bound.base))


def _scores(directory: Path, result: Result, found: Verification, reporter: Reporter) -> None:
    """Score the model anew."""
    place = model_place(directory, result)
    if place is None:
        raise UserError(f"{directory}: the model that the record is of is not on this machine: it can't be scored")
    again = score_anew(directory, place, result, reporter)
    wrong = [Problem("scores", "", problem) for problem in again.problems]
    found.note("scores", wrong, f"{again.samples} samples agree, {again.how}")


def _say_unchecked(found: Verification, **asked: bool) -> None:
    ways = {
        "data": "the data: --data, with the owner's key",
        "base": "the model before unlearning: --base",
        "rescore": "whether the model scores as recorded: --rescore",
    }
    found.unchecked += [ways[name] for name, was_asked in asked.items() if not was_asked]
