"""The brief: one page for people who decide. What was forgotten, what survived which attack, what it cost, and what to
take, with how sure that is. Every number is of a run that the page names."""

from __future__ import annotations

import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from letgo.core.errors import UserError
from letgo.core.statistics import LEAST_SEEDS
from letgo.optim.registry import GRADES, OPTIMIZERS
from letgo.report import audited
from letgo.report.comparison import MARGIN, Kept, Line, compare, compare_all, lines_of
from letgo.report.load import find_runs
from letgo.report.numbers import MISSING, duration, number, percent, words
from letgo.report.rendering import asset, policy, template, write_page
from letgo.report.table import Column, attack_labels, columns, short_labels
from letgo.report.verdict import verdict
from letgo.report.wording import wordings
from letgo.runs.results import Result

UNMATCHED = 0.05
"""A setting whose forget metric is lower than all others by this much forgot more than they did."""
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
class BriefEntry:
    """One line of the brief's table."""

    line: Line
    grade: str
    runs: str
    metrics: Mapping[str, tuple[float | None, float]]
    """The columns' metrics with their means before (None where that is not known) and after."""
    seconds: float
    memory: int | None
    kept: Mapping[str, Kept]
    words: str
    """The runs' verdicts, each with its number of runs."""
    subjects: str
    """How many subjects the worst of the runs still reveals; "" where that was not measured."""
    state: str
    """What is wrong with it: "" where nothing is."""

    @property
    def weakest(self) -> Kept | None:
        """Under the attack that left least."""
        return min(self.kept.values(), key=lambda kept: kept.value, default=None)

    @property
    def forgotten(self) -> dict[str, float]:
        """The forget metrics after unlearning."""
        return {key: after for key, (_, after) in self.metrics.items() if key.startswith("forget_")}


@dataclass(frozen=True)
class Brief:
    """All that the page says, before it is set in Markdown or HTML. `names` are short names of the labels; differences
    are against the `baseline`; `runs` has the number, path and id of each run."""

    title: str
    forgotten: str
    columns: Sequence[Column]
    labels: Sequence[str]
    names: Mapping[str, str]
    baseline: Line | None
    entries: Sequence[BriefEntry]
    headings: tuple[str, str]
    """Of `recommendation` and of `trade_off`."""
    trade_off: Sequence[str]
    recommendation: Sequence[str]
    notes: Sequence[str]
    problems: Sequence[str]
    runs: Sequence[tuple[str, str, str]]


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
    lines = sorted(lines_of(runs, directories), key=lambda line: [*GRADES.values(), "unknown"].index(_grade(line)))
    results = [run.result for run in runs]
    labels = attack_labels(results)
    comparison = compare_all(lines, labels)
    shown = columns([result for result in results if result.after] or results)
    entries = [_entry(line, numbers, shown, comparison.kept[line]) for line in lines]
    notes = [f"{entry.line.name}: {entry.state} (runs {entry.runs})" for entry in entries if entry.state]
    audits = [run.result for run in runs if run.result.audit]
    # Nobody takes an audited model because of its audit: what is recommended are settings of letgo's own runs.
    able = [entry for entry in entries if not entry.line.runs[0].result.audit]
    recommendation = _recommendation(able, labels) if able else []
    return Brief(
        title=_title(results),
        forgotten=_forgotten(results),
        columns=shown,
        labels=labels,
        names=short_labels(labels),
        baseline=comparison.baseline,
        entries=entries,
        headings=("What to take", "The trade-off") if able else ("What the audit says", "What was not tried"),
        trade_off=[
            *(_trade_off(able, grade) for grade in dict.fromkeys(entry.grade for entry in able)),
            *(text for result in audits for text in _not_tried(result)),
        ],
        recommendation=[*recommendation, *(text for result in audits for text in _audited(result))],
        notes=[
            *notes,
            *(f"not compared: {reason}" for reason in comparison.left_out),
            *(f"left out: {problem}" for problem in problems),
        ],
        problems=problems,
        runs=[(numbers[run.directory], run.directory.as_posix(), run.result.run_id) for run in runs],
    )


def _title(results: Sequence[Result]) -> str:
    made = {Path(str(result.config.get("model") or "a model")).name for result in results if result.audit is None}
    seen = {audited.name_of_model(result) for result in results if result.audit is not None}
    named = (("Unlearning", made), ("Audit of", seen))
    parts = [f"{what} {' and '.join(sorted(names))}" for what, names in named if names]
    return "; ".join(parts)


def _audited(result: Result) -> list[str]:
    """What an audit comes to, without names of subjects."""
    judged = verdict(result, names=False)
    return [f"{audited.name_of_model(result)}: {judged.headline}", *judged.sentences]


def _not_tried(result: Result) -> list[str]:
    name = audited.name_of_model(result)
    reasons = [f"{name}, {each.attack}: {each.reason}." for each in audited.not_tried(result)]
    return [*reasons, f"{name}: {audited.limits(result)}"]


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
        line=line,
        grade=MISSING if line.runs[0].result.audit else _grade(line),
        runs=", ".join(numbers[run.directory] for run in line.runs),
        metrics=metrics,
        seconds=statistics.fmean([run.result.seconds.get("unlearn", 0.0) for run in line.runs]),
        memory=max((max(r.peak_memory_bytes.values()) for r in measured if r.peak_memory_bytes), default=None),
        kept=kept,
        words=_words(measured),
        subjects=_subjects(measured),
        state="; ".join(state),
    )


def _words(results: Sequence[Result]) -> str:
    counts = Counter(result.judgement.word for result in results if result.judgement)
    return ", ".join(f"{count} {word}" if len(results) > 1 else word for word, count in counts.items())


def _subjects(results: Sequence[Result]) -> str:
    people = [result.judgement.subjects for result in results if result.judgement and result.judgement.subjects]
    if not people:
        return ""
    worst = max(people, key=lambda subjects: subjects.bound)
    return f"{len(worst.worst)} of {worst.of} (at most {percent(worst.bound)})"


def _forgotten(results: Sequence[Result]) -> str:
    data = {str(result.config.get("benchmark") or result.config.get("forget") or "?") for result in results}
    measured = [result.before or result.after for result in results]
    counts = [metric.n for metrics in measured for key, metric in metrics.items() if key.startswith("forget_")]
    asked = f", asked in {max(counts)} questions{wordings(results)}" if counts else ""
    audits = sum(result.audit is not None for result in results)
    what = f"{len(results)} runs were to forget"
    if audits == len(results):
        what = f"{audits} audit{'s' if audits > 1 else ''} looked for"
    return f"{what} {', '.join(sorted(data))}{asked}."


def _trade_off(entries: Sequence[BriefEntry], grade: str) -> str:
    """What the settings of a grade kept at the least, and what they took."""
    of_grade = [entry for entry in entries if entry.grade == grade]
    members = [entry for entry in of_grade if not entry.state]
    left_out = len(of_grade) - len(members)
    if not members:
        return f"{grade.capitalize()}: none of its {left_out} settings forgot cleanly."
    parts = ["never attacked"]
    if shares := [entry.weakest.value for entry in members if entry.weakest is not None]:
        span = " to ".join(dict.fromkeys((percent(min(shares)), percent(max(shares)))))
        parts = [f"kept {span} under its hardest attack"]
    parts.append(f"{duration(statistics.fmean([entry.seconds for entry in members]))} of unlearning")
    if len(members) == 1 and members[0].forgotten:
        parts.append(", ".join(f"{words(key)} {number(after)}" for key, after in members[0].forgotten.items()))
    aside = f" ({left_out} not counted: see the table)" if left_out else ""
    return f"{grade.capitalize()}, {len(members)} setting{'s' if len(members) > 1 else ''}{aside}: {'; '.join(parts)}."


def _recommendation(entries: Sequence[BriefEntry], labels: Sequence[str]) -> list[str]:
    """The line that keeps most under its hardest attack, and the others that are as good, the cheapest first."""
    if not labels:
        return ["No run was attacked, so nothing can be said about what lasts: attack them first (letgo attack)."]
    able = [entry for entry in entries if not entry.state and len(entry.kept) == len(labels)]
    if not able:
        return ["No setting forgot cleanly and met every attack: none of them can be recommended."]
    best = max(able, key=lambda entry: min(kept.value for kept in entry.kept.values()))
    label, hardest = min(best.kept.items(), key=lambda item: item[1].value)
    survived = sum(kept.survived for kept in best.kept.values())
    of = sum(kept.of for kept in best.kept.values())
    sentences = [
        f"Take {best.line.name}: under its hardest attack ({label}) it keeps {percent(hardest.value)} of the "
        f"forgetting{_interval(hardest)}, and it survived {survived} of {of} attacks."
    ]
    if others := [entry for entry in able if entry is not best]:
        sentences.append(
            f"It is the best of {len(able)} settings by these same figures, and what is chosen so looks better than it "
            "is: run it once more with new seeds before you rely on its figure. No test holds it against the others."
        )
        sentences += [*_unmatched(best, others), *_as_good(best, others, label)]
    if "partly" in best.words:
        revealed = f": {best.subjects} subjects are revealed" if best.subjects else ""
        sentences.append(f"It forgot only partly{revealed}. The best of these settings is not good enough to rely on.")
    if survived < of:
        sentences.append("It did not survive every attack: what it forgot must not be relied on to stay hidden.")
    few = min(len(entry.line.runs) for entry in able)
    if few < LEAST_SEEDS:
        plural = "s" if few > 1 else ""
        sentences.append(
            f"The figures rest on {few} seed{plural} a setting: with fewer than {LEAST_SEEDS} no difference between "
            "settings can be tested."
        )
    return sentences


def _interval(kept: Kept) -> str:
    if kept.interval is None:
        return ""
    low, high = map(percent, kept.interval)
    return f" (95 % interval {low} to {high})"


def _as_good(best: BriefEntry, others: Sequence[BriefEntry], label: str) -> list[str]:
    """The settings that are alike with the best one under an attack, and those that can't be told apart from it: the
    interval of their difference over paired seeds reaches zero. The cheapest of them by name."""
    gaps = {kept.line: kept for kept in compare([entry.line for entry in others], label, best.line)}
    alike = [entry for entry in others if gaps[entry.line].alike]
    open_ = [entry for entry in others if entry not in alike and _open(gaps[entry.line])]
    sentences = []
    if alike:
        sentences.append(
            f"Under that attack {_names(alike, label)} is as good: the whole 95 % interval of the difference over "
            f"paired seeds lies within {percent(MARGIN)}."
        )
    if open_:
        sentences.append(f"Under that attack it can't be told apart from {_names(open_, label)} over these seeds.")
    if not alike and not open_:
        sentences.append("Under that attack every other setting kept less over the same seeds.")
    cheapest = min([*alike, *open_], key=lambda entry: entry.seconds, default=best)
    if cheapest.seconds < best.seconds:
        sentences.append(
            f"Of these {cheapest.line.name} is the cheapest: {duration(cheapest.seconds)} of unlearning instead of "
            f"{duration(best.seconds)}."
        )
    return sentences


def _open(kept: Kept) -> bool:
    return kept.difference is None or kept.difference.high >= 0.0


def _names(entries: Sequence[BriefEntry], label: str) -> str:
    names = [f"{e.line.name} ({percent(e.kept[label].value)})" for e in sorted(entries, key=lambda e: e.seconds)]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _unmatched(best: BriefEntry, others: Sequence[BriefEntry]) -> list[str]:
    """A warning where the best setting also forgot more than all others: then more was to be brought back."""
    for key, after in best.forgotten.items():
        rest = [entry.forgotten[key] for entry in others if key in entry.forgotten]
        if Column(key).better.startswith("lower") and rest and after <= min(rest) - UNMATCHED:
            span = " to ".join(dict.fromkeys((number(min(rest)), number(max(rest)))))
            return [
                f"It also forgot more than every other setting ({words(key)} {number(after)}; the others {span}): "
                "part of what it kept may come of that, not of its optimizer."
            ]
    return []
