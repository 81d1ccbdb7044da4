"""A user's own forget and retain files as a benchmark: how likely, and how literal, their targets still are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from letgo.benchmarks.engine.base import Benchmark, Item, SetName
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.data.encode import Template
from letgo.data.rows import Row, check_disjoint, paraphrases, read_rows, wrong_answers
from letgo.runs.results import ON_TRAINED_ROWS, TRAINED_ROWS

RowsSource = str | Path | Sequence[Mapping[str, Any]]


def user_rows(
    *,
    forget: RowsSource,
    retain: RowsSource | None = None,
    evaluate: RowsSource | None = None,
    control: RowsSource | None = None,
    template: Template = "auto",
) -> Benchmark:
    """The rows of a forget and a retain file, scored by the probability of their targets and the ROUGE of greedy
    answers; rows with `wrong_answers` (a list) also by choice. Perplexity is of letgo's own general paragraphs.

    A row with `paraphrases` is scored in these other words. Where the forget rows have some, or `evaluate` is given,
    the set "forget" is of words that were not trained on, and the set "trained" scores the forget rows as they stand.
    Else the rows scored are the rows trained on, and the record says so.

    Args:
        forget, retain: files as in `letgo.data.rows.read_rows`, or lists of rows.
        evaluate: rows that ask the forget set's groups in other words, in the place of paraphrases.
        control: rows of facts that no model knew, which tell relearning from learning.
        template: how questions become prompts.

    Raises:
        UserError: for rows that can't be read; rows in two of the sets; a row of `evaluate` of no group of the forget
            set; both `evaluate` and paraphrases; other words that are trained on after all.
    """
    settings = {key: str(value) for key, value in locals().items() if isinstance(value, str | Path)}
    forget_rows = read_rows(forget, name="forget set")
    retain_rows = [] if retain is None else read_rows(retain, name="retain set")
    control_rows = [] if control is None else read_rows(control, name="control rows")
    check_disjoint(forget_rows, retain_rows)
    _check_controls(control_rows, {"forget set": forget_rows, "retain set": retain_rows})
    rows: dict[SetName, Sequence[Row]] = {"forget": forget_rows, "retain": retain_rows, "control": control_rows}
    reworded = {name: [paraphrases(row) for row in members] for name, members in rows.items()}
    if evaluate is not None:
        asked = read_rows(evaluate, name="evaluation rows")
        _check_evaluation(asked, forget_rows, reworded["forget"])
        on = settings.get("evaluate", "evaluation rows")
        forget_items = _items("forget", asked, [[]] * len(asked))
        notes = _untested(asked, forget_rows)
    else:
        asked = []
        on = "paraphrases" if any(reworded["forget"]) else TRAINED_ROWS
        forget_items = _items("forget", forget_rows, reworded["forget"])
        notes = [ON_TRAINED_ROWS] if on == TRAINED_ROWS else []
    others = [row for members in reworded.values() for words in members for row in words]
    _check_other_words([*asked, *others], [row for members in rows.values() for row in members])
    return Benchmark(
        name="rows",
        settings=settings,
        forget=forget_rows,
        retain=retain_rows,
        control=control_rows,
        items=[
            *forget_items,
            *([] if on == TRAINED_ROWS else _items("trained", forget_rows, [[]] * len(forget_rows))),
            *_items("retain", retain_rows, reworded["retain"]),
            *_items("control", control_rows, reworded["control"]),
        ],
        texts=general_paragraphs(held_out=True),
        template=template,
        provenance={"on": on},
        notes=(*notes, *_in_their_own_words(reworded, on)),
    )


def _items(name: SetName, rows: Sequence[Row], reworded: Sequence[Sequence[Row]]) -> list[Item]:
    """An item for each of a row's paraphrases, which are of one group with it; for the row itself where it has none."""
    items = []
    for index, (row, others) in enumerate(zip(rows, reworded, strict=True)):
        asked = {f"/p{number}": other for number, other in enumerate(others, start=1)} or {"": row}
        for mark, words in asked.items():
            items.append(Item(name, f"{name}-{index}{mark}", row.group, words, wrong_answers(words)))
    return items


def _in_their_own_words(reworded: Mapping[SetName, Sequence[Sequence[Row]]], on: str) -> list[str]:
    """Notes on rows without paraphrases among rows with some, and on control rows unlike the forget rows in that."""
    counts = {name: (sum(not others for others in members), len(members)) for name, members in reworded.items()}
    return [
        f"{missing} of {count} {name} rows have no paraphrases: they are scored in their own words"
        for name, (missing, count) in counts.items()
        if 0 < missing < count or (name == "control" and missing and on != TRAINED_ROWS)
    ]


def _untested(asked: Sequence[Row], forget: Sequence[Row]) -> list[str]:
    groups, tested = {row.group for row in forget}, {row.group for row in asked}
    missing = len(groups - tested)
    if not missing:
        return []
    return [
        f"{missing} of {len(groups)} groups of the forget set have no evaluation row: only the set trained has them"
    ]


def _check_evaluation(asked: Sequence[Row], forget: Sequence[Row], reworded: Sequence[Sequence[Row]]) -> None:
    """Raise a `UserError` unless each row asks about a group of the forget set, and nothing else rewords them."""
    where = next((row.where for row, others in zip(forget, reworded, strict=True) if others), None)
    if where is not None:
        raise UserError(
            f"{where}: the row has 'paraphrases', but evaluate names rows that are to be scored in their place\n"
            "  give one of the two: leave evaluate out, or take the paraphrases out of the forget set"
        )
    groups = list(dict.fromkeys(row.group for row in forget))
    for row in asked:
        if row.fields.get("paraphrases") is not None:
            raise UserError(f"{row.where}: an evaluation row can't have 'paraphrases'; give each of them as a row")
        if row.fields.get("group") is None:
            raise UserError(
                f"{row.where}: the row has no 'group'; name the group of the forget rows that it tests, and give these "
                "rows a 'group' too where they have none"
            )
        if row.group not in groups:
            raise UserError(
                f"{row.where}: group {row.group!r} is no group of the forget set{did_you_mean(row.group, groups)}\n"
                f"  its groups: {', '.join(groups[:10])}{', …' if len(groups) > 10 else ''}; name one of them, or take "
                "the row out"
            )


def _check_controls(control: Sequence[Row], others: Mapping[str, Sequence[Row]]) -> None:
    """Raise a `UserError` for a control row that is trained on, or is of a group that is."""
    for name, rows in others.items():
        contents, groups = {row.content: row for row in rows}, {row.group: row for row in rows}
        for row in control:
            if row.content in contents:
                what, other = "this control row", contents[row.content]
            elif row.group in groups:
                what, other = f"group {row.group!r} of this control row", groups[row.group]
            else:
                continue
            raise UserError(
                f"{row.where}: {what} stands in the {name} too (at {other.where})\n"
                "  a control row is a fact that no model was taught, of a group of its own: invent another"
            )


def _check_other_words(asked: Iterable[Row], trained: Iterable[Row]) -> None:
    """Raise a `UserError` for a question in other words that stands among the rows as it is."""
    known = {row.context or row.target: row for row in trained}
    for row in asked:
        if (same := known.get(row.context or row.target)) is not None:
            raise UserError(
                f"{row.where}: {str(row.context or row.target)[:80]!r} is no other wording: it stands as it is at "
                f"{same.where}\n  reword it, or take it out"
            )
