"""The brief: one page for people who decide. What was to be forgotten, is it gone, under what, what it cost, and what
to do, with how sure that is. Every number is of a run that the page names."""

from __future__ import annotations

import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from letgo.core.errors import UserError
from letgo.optim.registry import GRADES, OPTIMIZERS
from letgo.report import audited, plain
from letgo.report.comparison import Kept, Line, compare_all, lines_of
from letgo.report.load import find_runs
from letgo.report.numbers import MISSING, number
from letgo.report.plain import BriefEntry
from letgo.report.rendering import asset, policy, template, write_page
from letgo.report.table import Column, attack_labels, columns, short_labels
from letgo.report.verdict import verdict
from letgo.runs.results import Result

MOST_ROWS = 12
"""So many settings stand in the table; those that follow are in the report."""
WRONG = {
    "failed": "failed",
    "collapsed": "collapsed",
    "nothing": "nothing to forget",
    "not": "not forgotten",
    "unmeasured": "not measured",
    "learned": "only learned",
    "levels": "levels alone",
}
"""The kinds of verdict that keep a setting from being recommended, in words."""


@dataclass(frozen=True)
class Section:
    """A question, and the sentences that answer it."""

    question: str
    answer: Sequence[str]


@dataclass(frozen=True)
class Brief:
    """All that the page says, before it is set in Markdown or HTML. `signs` are what sentences call the attacks'
    labels, `names` short names of the labels; differences are against the `baseline`; `runs` has the number, path and
    id of each run."""

    title: str
    sections: Sequence[Section]
    columns: Sequence[Column]
    labels: Sequence[str]
    signs: Mapping[str, str]
    names: Mapping[str, str]
    baseline: Line | None
    entries: Sequence[BriefEntry]
    notes: Sequence[str]
    problems: Sequence[str]
    runs: Sequence[tuple[str, str, str]]

    @property
    def shown(self) -> Sequence[BriefEntry]:
        return self.entries[:MOST_ROWS]

    def before(self, key: str) -> str:
        """A metric before unlearning where it is the same for all settings shown; "" else."""
        values = {number(entry.metrics[key][0]) for entry in self.shown if key in entry.metrics}
        return values.pop() if len(values) == 1 else ""

    @property
    def tested(self) -> bool:
        """Whether some difference from the baseline has a p-value."""
        return any(kept.p is not None for entry in self.entries for kept in entry.kept.values())


def write_brief(directories: Sequence[Path], output: Path, say: Callable[[str], None] = warnings.warn) -> list[Path]:
    """Write the brief on run directories, folders of them, or sweeps as Markdown and as HTML; returns both paths.

    Args:
        output: `brief.md` or `brief.html`; the other one gets the same name with its own ending.
        say: takes a message for each run that can't be read. The page names them too.

    Raises:
        UserError: no run, or no run that finished, or an output that can't be written.
    """
    if output.is_dir() or output.suffix not in (".md", ".html"):
        raise UserError(f"{output}: name the file to write, such as {output.with_suffix('') / 'brief.md'}")
    gathered, style = brief(directories), asset("brief.css")
    paths = [output.with_suffix(".md"), output.with_suffix(".html")]
    for path in paths:
        page = template(f"brief{path.suffix}.j2")
        write_page(path, page.render(brief=gathered, style=Markup(style), policy=policy(style, "")))
    for problem in gathered.problems:
        say(f"left out: {problem}")
    return paths


def brief(directories: Sequence[Path]) -> Brief:
    """Gather the brief from run directories alone."""
    there, problems = find_runs(directories)
    runs = [run for run in there if run.result.before or run.result.audit or run.result.status == "failed"]
    if not runs:
        raise UserError("there is no unlearning run in what was given, so there is nothing to brief on")
    numbers = {run.directory: str(i) for i, run in enumerate(runs, 1)}
    lines, results = lines_of(runs, directories), [run.result for run in runs]
    labels = attack_labels(results)
    comparison = compare_all(lines, labels)
    shown = columns([result for result in results if result.after] or results)
    made = [_entry(line, numbers, shown, comparison.kept[line]) for line in lines]
    # Nobody takes an audited model because of its audit: what is recommended are settings of letgo's own runs.
    audits = [entry for entry in made if entry.results[0].audit]
    able = plain.chosen([entry for entry in made if entry not in audits], labels)
    rest = sorted((entry for entry in made if entry not in (*able, *audits)), key=lambda entry: _place(entry.grade))
    entries = [replace(entry, letter=_letter(i)) for i, entry in enumerate([*able, *rest, *audits])]
    able, own = entries[: len(able)], entries[: len(made) - len(audits)]
    signs = {label: f"K{i}" for i, label in enumerate(labels, 1)}
    notes = []
    for state in dict.fromkeys(entry.state for entry in entries if entry.state):
        wrong = [entry for entry in entries if entry.state == state]
        named = f"setting{'s' if len(wrong) > 1 else ''} {', '.join(entry.letter for entry in wrong)}"
        notes.append(f"{named}: {state} (runs {', '.join(entry.runs for entry in wrong)})")
    if len(entries) > MOST_ROWS:
        notes.append(f"{len(entries) - MOST_ROWS} more settings are in the report (letgo report)")
    return Brief(
        title=_title(results),
        sections=[Section("What was to be forgotten, and whose data is it?", plain.what(results))]
        + (_own(able, own, labels, signs) if own else [])
        + _audited(entries[len(own) :], signs),
        columns=shown,
        labels=labels,
        signs=signs,
        names=short_labels(labels),
        baseline=comparison.baseline,
        entries=entries,
        notes=[
            *notes,
            *(f"not compared: {reason}" for reason in comparison.left_out),
            *(f"left out: {problem}" for problem in problems),
        ],
        problems=problems,
        runs=[(numbers[run.directory], run.directory.as_posix(), run.result.run_id) for run in runs],
    )


def _own(
    able: Sequence[BriefEntry], own: Sequence[BriefEntry], labels: Sequence[str], signs: Mapping[str, str]
) -> list[Section]:
    """The answers on letgo's own runs: of the setting that is best, or that none forgot."""
    if not able:
        states = "; ".join(
            f"setting {entry.letter} {entry.state or 'tells nothing under some attack'}" for entry in own[:4]
        )
        return [
            Section(
                "Is it gone?", [f"No: of {len(own)} settings none forgot cleanly and met every attack ({states})."]
            ),
            Section("What to do?", plain.to_do(able, labels)),
        ]
    return [
        Section("Is it gone?", plain.gone(able[0], len(able))),
        Section("Under what?", plain.under(able[0], signs)),
        Section("What did it cost?", plain.cost(able[0])),
        Section("What would a more robust setting cost?", plain.more_robust(able, own)),
        Section("What to do?", plain.to_do(able, labels)),
    ]


def _audited(audits: Sequence[BriefEntry], signs: Mapping[str, str]) -> list[Section]:
    if not audits:
        return []
    found = [Section(f"What does the audit say of {entry.name}?", plain.audit(entry, signs)) for entry in audits]
    untried = [text for entry in audits for result in entry.results for text in plain.not_tried(result)]
    return [*found, Section("What was not tried?", untried)]


def _letter(index: int) -> str:
    """A, B, …, Z, A1, B1, …"""
    return f"{chr(ord('A') + index % 26)}{index // 26 or ''}"


def _place(grade: str) -> int:
    known = list(GRADES.values())
    return known.index(grade) if grade in known else len(known)


def _title(results: Sequence[Result]) -> str:
    made = {Path(str(result.config.get("model") or "a model")).name for result in results if result.audit is None}
    seen = {audited.name_of_model(result) for result in results if result.audit is not None}
    named = (("Unlearning", made), ("Audit of", seen))
    parts = [f"{what} {' and '.join(sorted(names))}" for what, names in named if names]
    return "; ".join(parts)


def _grade(line: Line) -> str:
    return GRADES[OPTIMIZERS.record(line.optimizer).grade] if line.optimizer in OPTIMIZERS else "unknown"


def _entry(line: Line, numbers: Mapping[Path, str], shown: Sequence[Column], kept: Mapping[str, Kept]) -> BriefEntry:
    measured = [run.result for run in line.runs if run.result.after]
    metrics: dict[str, tuple[float | None, float]] = {}
    for key in (column.key for column in shown):
        pairs = [(r.before[key].value, r.after[key].value) for r in measured if key in r.before and key in r.after]
        levels = [r.after[key].value for r in measured if key in r.after]
        if pairs:
            before, after = zip(*pairs, strict=True)
            metrics[key] = (statistics.fmean(before), statistics.fmean(after))
        elif levels:
            metrics[key] = (None, statistics.fmean(levels))
    kinds = [verdict(run.result).kind for run in line.runs]
    wrong = [kind for kind in dict.fromkeys(kinds) if kind in WRONG]
    state = [f"{WRONG[kind]} in {kinds.count(kind)} of {len(kinds)}" for kind in wrong]
    if line.reached is False:
        state.append("never reached the target")
    return BriefEntry(
        letter="",
        line=line,
        grade=MISSING if line.runs[0].result.audit else _grade(line),
        runs=", ".join(numbers[run.directory] for run in line.runs),
        metrics=metrics,
        seconds=statistics.fmean([run.result.seconds.get("unlearn", 0.0) for run in line.runs]),
        memory=max((max(r.peak_memory_bytes.values()) for r in measured if r.peak_memory_bytes), default=None),
        kept=kept,
        words=_words(measured),
        subjects=plain.most_revealing(measured),
        state="; ".join(state),
    )


def _words(results: Sequence[Result]) -> str:
    counts = Counter(result.judgement.word for result in results if result.judgement)
    return ", ".join(f"{count} {word}" if len(results) > 1 else word for word, count in counts.items())
