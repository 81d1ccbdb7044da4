"""The letter: a page in plain words for the person who asked that a model forget something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from markupsafe import Markup

from letgo.core.catalog import links_of, parse_chain
from letgo.core.errors import UserError
from letgo.report.rendering import asset, policy, template, write_page
from letgo.report.wording import means_of
from letgo.runs.register import AS_IT_IS, Outcome, Request, SubjectOutcome, find_request, read_register, today


@dataclass(frozen=True)
class Answer:
    """What was found out about one subject, in sentences."""

    subject: str
    sentences: Sequence[str]


@dataclass(frozen=True)
class Carried:
    """One run on a request: which model, when, and what was found out."""

    model: str
    day: str
    answers: Sequence[Answer]
    broken: bool


@dataclass(frozen=True)
class Letter:
    """All that the page says. `late` is by how many days the deadline is passed."""

    id: str
    subjects: Sequence[str]
    received: str
    deadline: str
    basis: str
    carried: Sequence[Carried]
    state: str
    late: int


def write_letter(register: str | Path, id: str, output: Path) -> Path:
    """Write the page on a request as HTML or Markdown, as the output's ending says; returns its path.

    Raises:
        UserError: no such request; another ending; the output can't be written.
    """
    if output.suffix not in (".html", ".md"):
        raise UserError(f"{output}: name an .html or an .md file")
    style = asset("brief.css")
    page = template(f"letter{output.suffix}.j2")
    gathered = letter(find_request(read_register(Path(register)), id), today())
    write_page(output, page.render(letter=gathered, style=Markup(style), policy=policy(style, "")))
    return output


def letter(request: Request, on: date) -> Letter:
    """The page on a request, as things are on a day."""
    return Letter(
        id=request.id,
        subjects=request.subjects,
        received=written_day(date.fromisoformat(request.received)),
        deadline=written_day(date.fromisoformat(request.deadline)),
        basis=request.basis,
        carried=[_carried(outcome) for outcome in request.newest],
        state=request.state,
        late=request.overdue(on),
    )


def written_day(day: date) -> str:
    """A day as people write it: 3 November 2026."""
    return f"{day.day} {day:%B %Y}"


def _carried(outcome: Outcome) -> Carried:
    return Carried(
        model=Path(outcome.base).name,
        day=written_day(date.fromisoformat(outcome.created[:10])),
        answers=[Answer(name, _answer(subject, outcome.attacks)) for name, subject in outcome.subjects.items()],
        broken=outcome.word == "collapsed",
    )


def _answer(subject: SubjectOutcome, attacks: Sequence[str]) -> list[str]:
    """What was found out about a subject: before, after, and under attack."""
    if subject.revealed is None:
        return [
            "After the change, none of our questions about this could be scored. So we can't say what it still knows."
        ]
    before = (
        "Before the change, the model gave the right answer to at least one of our questions."
        if subject.before
        else "Before the change, the model already gave no right answer to our questions."
    )
    after = (
        "After the change, it still gives the right answer to at least one of them."
        if AS_IT_IS in subject.by
        else "After the change, it no longer gives the right answer to any of them."
    )
    return [before, after, *_attacked(subject, attacks)]


def _attacked(subject: SubjectOutcome, attacks: Sequence[str]) -> list[str]:
    made = [label for label in attacks if label not in subject.not_asked_by]
    if not made:
        return ["Nobody has tried yet to bring the answers back by other means."]
    several = len(made) > 1
    ways = f"{len(made)} other ways" if several else "one other way"
    tried = f"We then tried to bring the answers back in {ways} ({_words(made)})."
    back = [label for label in subject.by if label != AS_IT_IS]
    if not back:
        return [f"{tried} {'None of them brought an answer back.' if several else 'It brought no answer back.'}"]
    which = f"{len(back)} of them" if several else "It"
    return [f"{tried} {which} brought an answer back ({_words(back)})."]


def _words(labels: Sequence[str]) -> str:
    names = [name for label in labels for name, _ in links_of(*parse_chain(label))]
    return "; ".join(dict.fromkeys(map(means_of, names)))
