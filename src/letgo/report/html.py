"""`report.html`: one page that needs nothing from outside, made from run directories alone.

The page forbids itself everything (`default-src 'none'`) except its own style sheet and script, each known by its
SHA-256; what a model wrote is escaped by jinja2, so it is text wherever it stands.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from letgo.analysis.records import read_analyses
from letgo.core.errors import UserError
from letgo.core.files import damaged
from letgo.core.terminal import visible
from letgo.report import answers, audited, figures, overview
from letgo.report.analyses import AnalysisView, view
from letgo.report.chart import Figure
from letgo.report.compared import compared
from letgo.report.comparison import lines_of
from letgo.report.load import LoadedRun, find_runs
from letgo.report.numbers import number
from letgo.report.rendering import asset, policy, template, write_page
from letgo.report.settings import settings, varying
from letgo.report.subjects import Revealed
from letgo.report.table import Column, attack_labels, columns, keys, rows, short_labels
from letgo.report.verdict import KINDS, Kind, overall, verdict
from letgo.report.wording import wording_caution
from letgo.runs.results import ON_TRAINED_ROWS, Result

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
    short: str = ""
    """Its name beside the other runs."""

    def __post_init__(self) -> None:
        self.anchor = f"run-{self.index}"
        self.result = self.run.result
        # The directory's name: run ids are unique, but say nothing to a reader.
        self.title = visible(self.run.directory.resolve().name)
        self.facts, self.not_tried = audited.facts(self.result), audited.not_tried(self.result)
        self.limits = audited.limits(self.result)
        if self.result.audit is not None:
            self.title += visible(f", an audit of {audited.name_of_model(self.result)}")
        self.short = self.short or self.title
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

    def read_samples(self, revealed: Revealed) -> None:
        """Take from the samples what is shown of them: `answers`, and what they reveal."""
        samples = self.run.samples()
        revealed.add(self.index, self.result, samples)
        self.answers = []
        for name, title in SETS.items():
            stages, questions = answers.collect(samples, name)
            if questions:
                shown = spread(questions, self.most_answers)
                self.answers.append(AnswerSet(name, title, stages, shown, len(questions)))


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
    judged = [run for run in runs if run.result.before and run.result.after]
    lines = lines_of(judged, directories) if many else []
    settled = overview.entries(lines, labels)
    short = _short_names(runs, settled)
    views = [RunView(i, run, most, curves, visible(short.get(run.directory, ""))) for i, run in enumerate(runs, 1)]
    revealed = Revealed()
    for shown in views:
        shown.read_samples(revealed)
    statuses = [result.status for result in results]
    style, script = asset("report.css"), asset("report.js")
    return template("report.html.j2").render(
        views=views,
        problems=problems,
        single=not many,
        columns=shared,
        before={column.key: _alike(results, column.key) for column in shared},
        labels=labels,
        names=short_labels(labels),
        varying=[name for name in varying([result.config for result in results]) if name != "seed"],
        overview=overview.figures_of_entries(settled, labels),
        compared=compared(lines, labels, directories, shared),
        subjects=revealed.subjects() if many else [],
        folded=len(runs) > MANY,
        tally=_tally(view.verdict.kind for view in views),
        overall=overall([(view.title, view.verdict) for view in views]),
        counts={s: statuses.count(s) for s in ("finished", "collapsed", "failed") if s in statuses},
        newest=max(result.created for result in results),
        version=results[0].letgo,
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )


def _short_names(runs: Sequence[LoadedRun], settled: Sequence[overview.Entry]) -> dict[Path, str]:
    """By directory: the setting's short name, with the seed (s0) where it has several runs; nothing for runs that
    would share a name."""
    names: dict[Path, str] = {}
    for entry in settled:
        for run in entry.line.runs:
            seed = f" · s{run.result.seed}" if len(entry.line.runs) > 1 else ""
            names[run.directory] = f"{entry.line.name}{seed}"
    counts = Counter(names.values())
    return {directory: name for directory, name in names.items() if counts[name] == 1}


def _tally(kinds: Iterable[Kind]) -> str:
    """What became of the runs, without their names."""
    counts = Counter(kinds)
    return "; ".join(f"{counts[kind]} {text}" for kind, text in KINDS.items() if counts[kind])


def _alike(results: Sequence[Result], key: str) -> str:
    """A metric before unlearning where all runs that have it show the same; "" else."""
    shown = {number(result.before[key].value) for result in results if key in result.before}
    return shown.pop() if len(shown) == 1 else ""


def spread(questions: Sequence[answers.ShownQuestion], most: int) -> list[answers.ShownQuestion]:
    """Up to `most` questions, evenly spaced over the file, so that none is picked by its outcome."""
    if len(questions) <= most:
        return list(questions)
    return [questions[index * len(questions) // most] for index in range(most)]
