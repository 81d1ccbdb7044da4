"""The brief: one page for people who decide. What was forgotten, what survived which attack, what it cost, and what to
take, with how sure that is. Every number is of a run that the page names."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from letgo.core.errors import UserError
from letgo.core.files import written_whole
from letgo.optim.registry import GRADES, OPTIMIZERS
from letgo.report.compared import with_targets
from letgo.report.comparison import Kept, Line, compare, compare_all, lines_of
from letgo.report.labels import short_labels
from letgo.report.load import Run, find_runs
from letgo.report.numbers import duration, number, percent
from letgo.report.rendering import asset, policy, template
from letgo.report.settings import varying
from letgo.report.table import Column, columns
from letgo.report.verdict import verdict

UNMATCHED = 0.05
"""With so much less left of what was to be forgotten a setting is said to have forgotten more than the others."""
TIE = 0.05
"""Two lines whose difference has a p-value of at least this can't be told apart."""


@dataclass(frozen=True)
class Entry:
    """One line of the brief's table."""

    line: Line
    grade: str
    runs: str
    forgetting: Sequence[tuple[Column, float, float]]
    """Forget metrics with their mean before and after."""
    utility: Sequence[tuple[Column, float, float]]
    seconds: float
    memory: int | None
    kept: Mapping[str, Kept]
    state: str
    """What is wrong with it: "" where nothing is."""

    @property
    def weakest(self) -> Kept | None:
        """Under the attack that left least."""
        return min(self.kept.values(), key=lambda one: one.value, default=None)


@dataclass(frozen=True)
class Brief:
    """All that the page says, before it is set in Markdown or HTML."""

    title: str
    forgotten: str
    columns: Sequence[Column]
    labels: Sequence[str]
    names: Mapping[str, str]
    """Short names of the labels."""
    baseline: Line | None
    """The setting that differences are against."""
    entries: Sequence[Entry]
    trade_off: Sequence[str]
    recommendation: Sequence[str]
    notes: Sequence[str]
    runs: Sequence[tuple[str, str, str]]
    """Number, path and id of each run."""


def write_brief(directories: Sequence[Path], output: Path) -> list[Path]:
    """Write the brief on the runs in `directories` as Markdown and as HTML, side by side; returns both paths.

    Args:
        directories: run directories, folders of them, or sweeps.
        output: `brief.md` or `brief.html`; the other one gets the same name with its own ending.

    Raises:
        UserError: no run, or no run that finished, or an output that can't be written.
    """
    if output.is_dir() or output.suffix not in (".md", ".html"):
        raise UserError(f"{output}: name the file to write, such as {output.with_suffix('') / 'brief.md'}")
    found = brief(directories)
    paths = [output.with_suffix(".md"), output.with_suffix(".html")]
    for path in paths:
        text = _render(found, "brief.md.j2" if path.suffix == ".md" else "brief.html.j2")
        try:
            with written_whole(path) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror or error}") from error
    return paths


def brief(directories: Sequence[Path]) -> Brief:
    """Gather the brief from run directories alone."""
    runs = [run for run in find_runs(directories) if run.result.before or run.result.status == "failed"]
    if not runs:
        raise UserError("there is no unlearning run in what was given, so there is nothing to brief on")
    numbered = {run.directory: str(i) for i, run in enumerate(runs, 1)}
    differing = [name for name in varying([run.result.config for run in runs]) if name != "seed"]
    lines = with_targets(lines_of(runs, differing), directories)
    lines.sort(key=lambda line: [*GRADES.values(), "unknown"].index(_grade(line)))
    results = [run.result for run in runs]
    labels = list(dict.fromkeys(attack.label for result in results for attack in result.attacks))
    comparison = compare_all(lines, labels)
    shown = columns([result for result in results if result.after] or results)
    entries = [_entry(line, numbered, shown, comparison.kept[line]) for line in lines]
    return Brief(
        title=_title(runs),
        forgotten=_forgotten(runs),
        columns=shown,
        labels=labels,
        names=short_labels(labels),
        baseline=comparison.baseline,
        entries=entries,
        trade_off=_trade_off(entries),
        recommendation=_recommendation(entries, labels),
        notes=[*_notes(entries), *(f"not compared: {reason}" for reason in comparison.left_out)],
        runs=[(numbered[run.directory], run.directory.as_posix(), run.result.run_id) for run in runs],
    )


def _grade(line: Line) -> str:
    return GRADES[OPTIMIZERS.record(line.optimizer).grade] if line.optimizer in OPTIMIZERS else "unknown"


def _entry(line: Line, numbered: dict[Path, str], shown: Sequence[Column], kept: Mapping[str, Kept]) -> Entry:
    measured = [run.result for run in line.runs if run.result.after]

    def means(prefixes: tuple[str, ...]) -> list[tuple[Column, float, float]]:
        found = []
        for column in shown:
            pairs = [(r.before[column.key].value, r.after[column.key].value) for r in measured
                     if column.key in r.before and column.key in r.after]  # fmt: skip
            if column.key.startswith(prefixes) and pairs:
                before, after = zip(*pairs, strict=True)
                found.append((column, statistics.fmean(before), statistics.fmean(after)))
        return found

    kinds = [verdict(run.result).kind for run in line.runs]
    wrong = [kind for kind in kinds if kind in ("failed", "collapsed", "nothing", "unmeasured", "learned")]
    words = {"nothing": "hardly forgot", "unmeasured": "not measured", "learned": "only learned"}
    state = "; ".join(
        f"{words.get(kind, kind)} in {wrong.count(kind)} of {len(kinds)}" for kind in dict.fromkeys(wrong)
    )
    if line.reached is False:
        state = "; ".join(filter(None, (state, "never reached the target")))
    peaks = [max(r.peak_memory_bytes.values()) for r in measured if r.peak_memory_bytes]
    return Entry(
        line=line,
        grade=_grade(line),
        runs=", ".join(numbered[run.directory] for run in line.runs),
        forgetting=means(("forget_",)),
        utility=means(("retain_", "general_")),
        seconds=statistics.fmean([run.result.seconds.get("unlearn", 0.0) for run in line.runs]),
        memory=max(peaks, default=None),
        kept=kept,
        state=state,
    )


def _title(runs: Sequence[Run]) -> str:
    models = {str(run.result.config.get("model") or "a model") for run in runs}
    return f"Unlearning {' and '.join(sorted(Path(model).name for model in models))}"


def _forgotten(runs: Sequence[Run]) -> str:
    configs = [run.result.config for run in runs]
    data = sorted({str(config.get("benchmark") or config.get("forget") or "?") for config in configs})
    counts = [metric.n for run in runs for key, metric in run.result.before.items() if key.startswith("forget_")]
    asked = f", asked in {max(counts)} questions that were not trained on" if counts else ""
    return f"{len(runs)} runs were to forget {', '.join(data)}{asked}."


def _trade_off(entries: Sequence[Entry]) -> list[str]:
    """By grade: what was kept at the least, and what it took."""
    told = []
    for grade in dict.fromkeys(entry.grade for entry in entries):
        members = [entry for entry in entries if entry.grade == grade and not entry.state]
        weakest = [entry.weakest for entry in members if entry.weakest is not None]
        left_out = sum(bool(entry.state) for entry in entries if entry.grade == grade)
        aside = f" ({left_out} not counted: see the table)" if left_out else ""
        if not members:
            told.append(f"{grade.capitalize()}: none of its {left_out} settings forgot cleanly.")
            continue
        forgot = [f"{c.title} {number(after)}" for c, _, after in members[0].forgetting] if len(members) == 1 else []
        took = f"{duration(statistics.fmean([entry.seconds for entry in members]))} of unlearning"
        kept = "never attacked"
        if weakest:
            low, high = min(one.value for one in weakest), max(one.value for one in weakest)
            span = percent(low) if percent(low) == percent(high) else f"{percent(low)} to {percent(high)}"
            kept = f"kept {span} under its hardest attack"
        what = "; ".join(filter(None, (kept, took, ", ".join(forgot))))
        told.append(f"{grade.capitalize()}, {len(members)} setting{'s' if len(members) > 1 else ''}{aside}: {what}.")
    return told


def _recommendation(entries: Sequence[Entry], labels: Sequence[str]) -> list[str]:
    """The line that keeps most under its hardest attack; others that can't be told apart from it are named, the
    cheapest first."""
    if not labels:
        return ["No run was attacked, so nothing can be said about what lasts: attack them first (letgo attack)."]
    able = [entry for entry in entries if not entry.state and len(entry.kept) == len(labels)]
    if not able:
        return ["No setting forgot cleanly and met every attack: none of them can be recommended."]
    best = max(able, key=lambda entry: entry.weakest.value if entry.weakest else -1.0)
    hardest = best.weakest
    if hardest is None:
        return []
    label = next(label for label, one in best.kept.items() if one is hardest)
    survived = sum(one.survived for one in best.kept.values())
    of = sum(one.of for one in best.kept.values())
    told = [
        f"Take {best.line.name}: under its hardest attack ({label}) it keeps {percent(hardest.value)} of the "
        f"forgetting (95 % interval {percent(hardest.low)} to {percent(hardest.high)}), and it survived {survived} of "
        f"{of} attacks."
    ]
    others = [entry for entry in able if entry is not best]
    told += _unmatched(best, others)
    compared = {one.line: one for one in compare([entry.line for entry in able], label, best.line)}
    tied = [entry for entry in others if (compared[entry.line].p or 0.0) >= TIE]
    if tied:
        tied.sort(key=lambda entry: entry.seconds)
        names = ", ".join(f"{entry.line.name} ({percent(entry.kept[label].value)})" for entry in tied[:4])
        more = f" and {len(tied) - 4} more" if len(tied) > 4 else ""
        told.append(f"Under that attack it can't be told apart from {names}{more} on these questions.")
        if tied[0].seconds < best.seconds:
            told.append(
                f"Of these {tied[0].line.name} is the cheapest: {duration(tied[0].seconds)} of unlearning instead of "
                f"{duration(best.seconds)}."
            )
    elif others:
        told.append(
            "Every other setting keeps significantly less under that attack (paired bootstrap, Holm's correction)."
        )
    if survived < of:
        told.append("It did not survive every attack: what it forgot must not be relied on to stay hidden.")
    few = min(len(entry.line.runs) for entry in able)
    if few < 3:
        told.append(f"The figures rest on {few} seed{'s' if few > 1 else ''} a setting: more would make them surer.")
    return told


def _unmatched(best: Entry, others: Sequence[Entry]) -> list[str]:
    """A warning where the best setting also forgot more than all others: then more was to be brought back."""
    for column, _, after in best.forgetting:
        rest = [value for entry in others for c, _, value in entry.forgetting if c.key == column.key]
        if column.better.startswith("lower") and rest and after <= min(rest) - UNMATCHED:
            span = " to ".join(dict.fromkeys((number(min(rest)), number(max(rest)))))
            return [
                f"It also forgot more than every other setting ({column.title} {number(after)}; the others {span}): "
                "part of what it kept may come of that, not of its optimizer."
            ]
    return []


def _notes(entries: Sequence[Entry]) -> list[str]:
    return [f"{entry.line.name}: {entry.state} (runs {entry.runs})" for entry in entries if entry.state]


def _render(found: Brief, name: str) -> str:
    style = asset("brief.css")
    return template(name).render(brief=found, style=Markup(style), policy=policy(style, ""))
