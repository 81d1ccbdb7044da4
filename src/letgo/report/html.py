"""`report.html`: one page that needs nothing from outside, made from run directories alone.

The page forbids itself everything (`default-src 'none'`) except its own style sheet and script, each known by its
SHA-256; what a model wrote is escaped by jinja2, so it is text wherever it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from letgo.analysis.records import read_analyses
from letgo.core.errors import UserError
from letgo.core.files import written_whole
from letgo.report import answers, figures
from letgo.report.analyses import AnalysisView, view
from letgo.report.chart import Figure
from letgo.report.compared import compared, told
from letgo.report.labels import short_labels
from letgo.report.load import Run, find_runs
from letgo.report.rendering import asset, policy, template
from letgo.report.settings import commands, settings, varying
from letgo.report.table import Column, Row, columns, keys, rows, usual_n
from letgo.report.verdict import Verdict, overall, verdict
from letgo.runs.results import Result

ANSWERS_IN_ALL = 600
"""Questions shown in one page, shared out among the runs."""
ANSWERS_A_SET = 40
"""At most so many of one run's set, and at least three."""
MANY = 50
"""Above so many runs their training curves are drawn with fewer points, and what a run's heading opens is kept
compressed until it is opened (and printed only then): so the page stays light."""
SETS = {
    "forget": "Questions it should no longer answer",
    "retain": "Questions it should still answer",
    "holdout": "Held-out questions",
    "general": "General questions",
}


@dataclass(frozen=True)
class AnswerSet:
    name: str
    title: str
    stages: Sequence[str]
    questions: Sequence[answers.Question]
    total: int


@dataclass
class RunView:
    """One run as the template sees it; what takes reading files is read when it is reached."""

    index: int
    run: Run
    most_answers: int
    curves: dict[str, int]
    columns: Sequence[Column]
    anchor: str = field(init=False)

    def __post_init__(self) -> None:
        self.anchor = f"run-{self.index}"

    @property
    def result(self) -> Result:
        return self.run.result

    @property
    def title(self) -> str:
        """The directory's name: run ids are unique, but say nothing to a reader."""
        return answers.visible(self.run.directory.resolve().name)

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.result)

    @cached_property
    def rows(self) -> list[Row]:
        return rows(self.result)

    @cached_property
    def metric_keys(self) -> list[Column]:
        return [Column(key) for key in keys([self.result])]

    @cached_property
    def attacks(self) -> dict[str, Row]:
        return {row.attack.label: row for row in self.rows if row.attack is not None}

    def usual_n(self, column: Column) -> int | None:
        return usual_n(self.rows, column.key)

    def figures(self) -> list[Figure]:
        name = self.anchor
        drawn = [
            figures.trade_off(self.result, f"{name}-trade"),
            figures.training(self.run.history(), f"{name}-loss", **self.curves),
            figures.attacked(self.result, f"{name}-kept"),
            *(figures.curve(a, f"{name}-curve-{i}") for i, a in enumerate(self.result.attacks)),
        ]
        return [figure for figure in drawn if figure is not None]

    @cached_property
    def analyses(self) -> list[AnalysisView]:
        entries = read_analyses(self.run.directory)
        return [view(entry, f"{self.anchor}-analysis-{i}") for i, entry in enumerate(entries, 1)]

    def answers(self) -> list[AnswerSet]:
        samples = self.run.samples()
        out = []
        for name, title in SETS.items():
            stages, questions = answers.collect(samples, name)
            if questions:
                shown = spread(questions, self.most_answers)
                out.append(AnswerSet(name, title, stages, shown, len(questions)))
        return out

    @cached_property
    def settings(self) -> list[tuple[str, str]]:
        return settings(self.result.config)

    @property
    def commands(self) -> list[str]:
        return commands(self.run)

    @property
    def seconds(self) -> float:
        """All that the run took: its own total if it names one."""
        taken = self.result.seconds
        return taken.get("total", sum(taken.values()))


def write_report(directories: Sequence[Path], output: Path) -> Path:
    """Write one self-contained HTML page on the runs in `directories`; returns its path.

    Args:
        directories: run directories, or folders that hold runs one or two levels down.
        output: the file to write, whole or not at all.

    Raises:
        UserError: a directory is missing or holds no run, a file in it is broken, or the output can't be written.
    """
    runs = find_runs(directories)
    if output.is_dir():
        raise UserError(f"{output} is a directory; name the file to write, such as {output / 'report.html'}")
    page = answers.visible(render(runs, directories))
    try:
        with written_whole(output) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{output} can't be written: {error.strerror or error}") from error
    return output


def render(runs: Sequence[Run], directories: Sequence[Path] = ()) -> str:
    """The page as text; `directories` are what was asked for, where sweeps are looked for. The same directories give
    the same text."""
    results = [run.result for run in runs]
    shared = columns(results)
    most = min(ANSWERS_A_SET, max(3, ANSWERS_IN_ALL // (2 * len(runs))))
    curves = {"most_points": 100, "most_rows": 15} if len(runs) > MANY else {}
    views = [
        RunView(i, run, most, curves, shared if len(runs) > 1 else columns([run.result]))
        for i, run in enumerate(runs, 1)
    ]
    style, script = asset("report.css"), asset("report.js")
    labels = list(dict.fromkeys(label for view in views for label in view.attacks))
    return template("report.html.j2").render(
        views=views,
        single=len(views) == 1,
        columns=shared,
        labels=labels,
        names=short_labels(labels),
        varying=[name for name in varying([view.result.config for view in views]) if name != "seed"],
        overview=figures.all_runs(results, [view.title for view in views], "all") if len(views) > 1 else None,
        compared=compared(runs, directories, shared) if len(views) > 1 else None,
        folded=len(views) > MANY,
        overall=overall([(view.title, view.verdict) for view in views]),
        counts=_counts(results),
        told=told,
        newest=max(result.created for result in results),
        version=results[0].letgo,
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )


def spread(questions: Sequence[answers.Question], most: int) -> list[answers.Question]:
    """Up to `most` questions, evenly spaced over the file, so that none is picked by its outcome."""
    if len(questions) <= most:
        return list(questions)
    return [questions[index * len(questions) // most] for index in range(most)]


def _counts(results: Sequence[Result]) -> list[tuple[str, int]]:
    counts = {status: sum(r.status == status for r in results) for status in ("finished", "collapsed", "failed")}
    return [(status, count) for status, count in counts.items() if count]
