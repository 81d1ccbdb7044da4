"""The register of erasure requests: who asked, about whom, by when, and what each run left of it. No content.

A JSON-lines file, a request a line, for its owner alone to read (it names people). It is changed under a lock, and
written whole.
"""

from __future__ import annotations

import calendar
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError, not_writable
from letgo.core.files import damaged, read_json_lines, write_json_lines
from letgo.core.locks import locked
from letgo.core.values import flaw, shown
from letgo.runs.documents import validated
from letgo.runs.results import Strict, Word

State = Literal["open", "revealed", "done"]
_ID = re.compile(r"[\w][\w.-]{0,63}")
_LONGEST_BASIS = 300
AS_IT_IS = "as it is"
"""What reveals a subject where no attack is needed."""


def _day(text: str) -> str:
    return date.fromisoformat(text).isoformat()


Day = Annotated[str, AfterValidator(_day)]
"""A date, ISO 8601."""


class SubjectOutcome(Strict):
    """What one run's record says of one subject."""

    before: bool
    """Whether the model before unlearning revealed it."""
    revealed: bool | None
    """Whether the unlearned model does, as it is or under some attack; None where it was not asked."""
    by: list[str] = Field(default_factory=list)
    """What reveals it: `as it is`, and attacks."""
    not_asked_by: list[str] = Field(default_factory=list)
    """Attacks in which it was not asked: the attacker was given it."""


class Outcome(Strict):
    """What one run left of a request."""

    run: str
    path: str
    """The run's directory, as seen from the register's folder."""
    model: str
    """The model that the run began with."""
    base: str
    """The model at the beginning of the line: that of the first run in it."""
    created: str
    word: Word | None
    """The run's verdict."""
    attacks: list[str]
    subjects: dict[str, SubjectOutcome]

    @property
    def clean(self) -> bool:
        """Whether the model works, each subject was asked, and none is revealed."""
        return self.word != "collapsed" and all(subject.revealed is False for subject in self.subjects.values())


class Request(Strict):
    """A line of the register."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    id: str
    subjects: list[str]
    """As the data's rows name them (`group`)."""
    received: Day
    deadline: Day
    basis: str = ""
    """Why it is to be erased, such as an article of a law."""
    outcomes: list[Outcome] = Field(default_factory=list)

    @property
    def newest(self) -> list[Outcome]:
        """The newest outcome of each base."""
        return list({outcome.base: outcome for outcome in self.outcomes}.values())

    @property
    def state(self) -> State:
        """`done` where the newest outcome of each base is clean."""
        if not self.outcomes:
            return "open"
        return "done" if all(outcome.clean for outcome in self.newest) else "revealed"

    def overdue(self, on: date) -> int:
        """By how many days it is late; 0 for none, and for one that is done."""
        return 0 if self.state == "done" else max(0, (on - date.fromisoformat(self.deadline)).days)

    def with_outcome(self, outcome: Outcome) -> Request:
        """The request with what a run left of it, in the place of what was known of that run."""
        others = [known for known in self.outcomes if known.run != outcome.run]
        return self.model_copy(update={"outcomes": [*others, outcome]})


def today() -> date:
    return datetime.now(UTC).date()


def month_after(day: date) -> date:
    """The same day of the next month, or its last."""
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    return day.replace(year=year, month=month, day=min(day.day, calendar.monthrange(year, month)[1]))


def new_request(
    id: str,
    subjects: Sequence[str],
    *,
    received: str | None = None,
    deadline: str | None = None,
    basis: str = "",
) -> Request:
    """A request, checked.

    Args:
        id: letters, digits, and . _ -; it names the letter's file.
        subjects: at least one, each once.
        received: a date; today by default.
        deadline: a date; a month after it was received by default.
        basis: at most one line; no content.

    Raises:
        UserError: for anything else.
    """
    if not _ID.fullmatch(id):
        raise UserError(f"request id {shown(id)}: letters, digits and . _ - alone, at most 64")
    if not subjects or len(set(subjects)) < len(subjects):
        raise UserError(f"request {id}: {'a subject is given twice' if subjects else 'name a subject (--subject)'}")
    for subject in subjects:
        if not subject.strip() or subject != subject.strip() or flaw(subject):
            raise UserError(f"request {id}: subject {shown(subject)} is no name: give it as the data's rows do (group)")
    if len(basis) > _LONGEST_BASIS or "\n" in basis or flaw(basis):
        raise UserError(f"request {id}: basis is one line of at most {_LONGEST_BASIS} characters, and no content")
    came = today() if received is None else checked_day(received, "received")
    due = month_after(came) if deadline is None else checked_day(deadline, "deadline")
    if came > today():
        raise UserError(f"request {id}: received {came}, which is still to come")
    if due < came:
        raise UserError(f"request {id}: deadline {due} is before the request was received, {came}")
    return Request(
        id=id, subjects=list(subjects), received=came.isoformat(), deadline=due.isoformat(), basis=basis.strip()
    )


def checked_day(text: str, name: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{name} is {shown(text)}, which is no date: write it as 2026-11-30") from error


def read_register(path: Path) -> list[Request]:
    """The requests of a register, in their order; none where there is no such file. A broken one is a `UserError`."""
    if not os.path.lexists(path):
        return []
    requests = []
    for number, row in enumerate(read_json_lines(path), start=1):
        requests.append(validated(f"{path}:{number}", Request, row))
        if any(known.id == requests[-1].id for known in requests[:-1]):
            raise damaged(f"{path}:{number}", f"request {requests[-1].id!r} is there twice")
    return requests


def find_request(requests: Sequence[Request], id: str) -> Request:
    """The request of an id; a `UserError` for one that is not there."""
    ids = [request.id for request in requests]
    if id not in ids:
        raise UserError(f"no request {id!r}{did_you_mean(id, ids)}; there are {', '.join(ids) or 'none yet'}")
    return requests[ids.index(id)]


def check_requests(path: Path, ids: Sequence[str]) -> None:
    """Raise a `UserError` unless a register can be read, and has requests, these among them."""
    known = read_register(path)
    if not known:
        raise UserError(f"no request is open: there is none in {path}; `letgo requests add` writes one")
    for id in ids:
        find_request(known, id)


def add_request(path: Path, request: Request) -> None:
    """Add a request to a register, which is made where there is none.

    Raises:
        UserError: it has one of this id already; it can't be written.
    """
    with _changed(path) as requests:
        if any(known.id == request.id for known in requests):
            raise UserError(f"{path} has a request {request.id!r} already: give another id")
        requests.append(request)


def change_requests(path: Path, change: Callable[[Request], Request]) -> None:
    """Change requests of a register as it is now."""
    with _changed(path) as requests:
        requests[:] = [change(request) for request in requests]


@contextmanager
def _changed(path: Path) -> Iterator[list[Request]]:
    """Within: the requests, to be changed by this process alone; written when the block ends well."""
    try:
        with locked(path.with_name(f".{path.name}.lock"), wait=True):
            requests = read_register(path)
            yield requests
            rows = (request.model_dump(mode="json", by_alias=True) for request in requests)
            write_json_lines(path, rows, private=True)
    except OSError as error:
        raise not_writable(f"register {path}", error) from error
