"""`report.html`: one page that needs nothing from outside, made from run directories alone.

The page forbids itself everything (`default-src 'none'`) except its own style sheet and script, each known by its
SHA-256; what a model wrote is escaped by jinja2, so it is text wherever it stands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from letgo.analysis.records import read_analyses
from letgo.core.errors import UserError
from letgo.core.files import damaged
from letgo.core.terminal import visible
from letgo.report import answers, audited, figures
from letgo.report.analyses import AnalysisView, view
from letgo.report.chart import Figure
from letgo.report.compared import compared
from letgo.report.load import LoadedRun, find_runs
from letgo.report.rendering import asset, policy, template, write_page
from letgo.report.settings import settings, varying
from letgo.report.table import Column, attack_labels, columns, keys, rows, short_labels
from letgo.report.verdict import overall, verdict
from letgo.report.wording import wording_caution
from letgo.runs.results import ON_TRAINED_ROWS

ANSWERS_IN_ALL = 600
"""Questions shown in one page, shared out among the runs."""
ANSWERS_A_SET = 40
"""At most so many of one run's set, and at least three."""
MANY = 50
"""Above so many runs their training curves are drawn with fewer points, and what a run's heading opens is kept
compressed until it is opened (and printed only then): so the page stays light."""
SETS = {
    "forget": "Questions it should no longer answer",
    "trained": "The rows that it was trained on",
    "retain": "Questions it should still answer",
    "control": "Questions about what no model knew",
    "holdout": "Held-out questions",
    "general": "General questions",
}


@dataclass(frozen=True)
class AnswerSet:
    name: str
    title: str
    stages: Sequence[str]
    questions: Sequence[answers.ShownQuestion]
    total: int


@dataclass
class RunView:
    """One run as the template sees it; what takes reading files is read when it is reached."""

    index: int
    run: LoadedRun
    most_answers: int
    curves: dict[str, int]

    def __post_init__(self) -> None:
        self.anchor = f"run-{self.index}"
        self.result = self.run.result
        # The directory's name: run ids are unique, but say nothing to a reader.
        self.title = visible(self.run.directory.resolve().name)
        self.facts, self.not_tried = audited.facts(self.result), audited.not_tried(self.result)
        self.limits = audited.limits(self.result)
        if self.result.audit is not None:
            self.title += visible(f", an audit of {audited.name_of_model(self.result)}")
        self.verdict = verdict(self.result)
        self.caution = wording_caution(self.result)
        self.notes = [note for note in self.result.notes if note != ON_TRAINED_ROWS]  # The caution says it.
        self.rows = rows(self.result)
        self.attacks = {row.attack.label: row for row in self.rows if row.attack is not None}
        self.metric_keys = [Column(key) for key in keys([self.result])]
        self.settings = settings(self.result.config)

    def figures(self) -> list[Figure]:
        history = self.run.history()
        drawn = [
            figures.trade_off(self.result, f"{self.anchor}-trade"),
            figures.training(history, f"{self.anchor}-loss", **self.curves),
            figures.looks(history, f"{self.anchor}-looks"),
            figures.attacked(self.result, f"{self.anchor}-kept"),
            *(figures.curve(a, f"{self.anchor}-curve-{i}") for i, a in enumerate(self.result.attacks)),
        ]
        return [figure for figure in drawn if figure is not None]

    @cached_property
    def analyses(self) -> list[AnalysisView]:
        return self.run.read(self._analyses)

    def _analyses(self, directory: Path) -> list[AnalysisView]:
        entries = read_analyses(directory)
        try:
            return [view(entry, f"{self.anchor}-analysis-{i}") for i, entry in enumerate(entries, 1)]
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # What no schema says: losses of other names than the grid's, a grid with holes.
            raise damaged(directory, f"the parts of an analysis don't fit each other ({error!r})") from error

    def answers(self) -> list[AnswerSet]:
        samples, sets = self.run.samples(), []
        for name, title in SETS.items():
            stages, questions = answers.collect(samples, name)
            if questions:
                sets.append(AnswerSet(name, title, stages, spread(questions, self.most_answers), len(questions)))
        return sets


def write_report(directories: Sequence[Path], output: Path, say: Callable[[str], None] = warnings.warn) -> Path:
    """Write one self-contained HTML page on runs, whole or not at all; returns its path.

    Args:
        directories: run directories, or folders that hold runs one or two levels down.
        say: takes a message for each run, or file of one, that can't be read. The page names them too.

    Raises:
        UserError: a directory is missing or holds no run that can be read, or the output can't be written.
    """
    runs, problems = find_runs(directories)
    if output.is_dir():
        raise UserError(f"{output} is a directory; name the file to write, such as {output / 'report.html'}")
    write_page(output, render(runs, directories, problems))
    for problem in (*problems, *(problem for run in runs for problem in run.problems)):
        say(f"left out: {problem}")
    return output


def render(runs: Sequence[LoadedRun], directories: Sequence[Path] = (), problems: Sequence[str] = ()) -> str:
    """The page as text; `directories` are what was asked for, where sweeps are looked for; `problems` say which runs
    can't be shown. The same directories give the same text."""
    results, many = [run.result for run in runs], len(runs) > 1
    shared, labels = columns(results), attack_labels(results)
    most = min(ANSWERS_A_SET, max(3, ANSWERS_IN_ALL // (2 * len(runs))))
    curves = {"most_points": 100, "most_rows": 15} if len(runs) > MANY else {}
    views = [RunView(i, run, most, curves) for i, run in enumerate(runs, 1)]
    statuses = [result.status for result in results]
    style, script = asset("report.css"), asset("report.js")
    return template("report.html.j2").render(
        views=views,
        problems=problems,
        single=not many,
        columns=shared,
        labels=labels,
        names=short_labels(labels),
        varying=[name for name in varying([result.config for result in results]) if name != "seed"],
        overview=figures.all_runs(results, [view.title for view in views], "all") if many else None,
        compared=compared(runs, directories, shared) if many else None,
        folded=len(runs) > MANY,
        overall=overall([(view.title, view.verdict) for view in views]),
        counts={s: statuses.count(s) for s in ("finished", "collapsed", "failed") if s in statuses},
        newest=max(result.created for result in results),
        version=results[0].letgo,
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )


def spread(questions: Sequence[answers.ShownQuestion], most: int) -> list[answers.ShownQuestion]:
    """Up to `most` questions, evenly spaced over the file, so that none is picked by its outcome."""
    if len(questions) <= most:
        return list(questions)
    return [questions[index * len(questions) // most] for index in range(most)]
