"""What a page of many runs shows first: what each setting kept under each attack, and which settings no other beats in
forgetting, utility and robustness."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup

from letgo.core.terminal import visible
from letgo.report.chart import Cell, Figure, Matrix
from letgo.report.comparison import Kept, Line, compare, lines_of
from letgo.report.figures import axes_of, plane
from letgo.report.load import LoadedRun
from letgo.report.numbers import MISSING, kept_text, number, percent, words
from letgo.report.svg import Key, band_key, mark_key, shade_key
from letgo.report.table import Column, attack_labels, short_labels

MOST_ROWS = 24
"""So many settings are drawn in the map, those that kept most; the others stand in the table behind it."""
MOST_HEADS = 4
"""With more attacks the heads of the map are signs that its legend explains."""
MOST_NUMBERED = 30
"""Beside those on the frontier, so many settings carry their number in its plot."""
CLASSES = {"survived": "reference", "broken": "attack", "after": "after"}
"""By how a setting ended, the class of its mark in the plot."""
SHADES = ("0 to 25 %", "25 to 50 %", "50 to 75 %", "75 to 100 %")

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Entry:
    """A setting (or a run, where there is only one setting) under its number; `kept` by attack."""

    number: int
    line: Line
    kept: Mapping[str, Kept]

    @property
    def weakest(self) -> Kept | None:
        return min(self.kept.values(), key=lambda kept: kept.value, default=None)

    @property
    def broken(self) -> bool:
        return any(run.result.status != "finished" for run in self.line.runs)

    @property
    def title(self) -> str:
        return f"{self.number}{'†' if self.line.reached is False else ''}. {self.line.name}"


def entries(lines: Sequence[Line], labels: Sequence[str]) -> list[Entry]:
    """The settings, those first that kept most under their hardest attack. A single one is taken apart into its
    runs."""
    if len(lines) == 1:
        runs = lines[0].runs
        names = [f"seed {run.result.seed}" for run in runs]
        if len(set(names)) < len(names):
            names = [visible(run.directory.resolve().name) for run in runs]
        lines = [replace(lines[0], name=name, runs=(run,)) for name, run in zip(names, runs, strict=True)]
    kept: dict[Line, dict[str, Kept]] = {line: {} for line in lines}
    for label in labels:
        for under_attack in compare(lines, label, None):
            kept[under_attack.line][label] = under_attack
    made = [Entry(0, line, kept[line]) for line in lines]
    made.sort(key=lambda entry: (entry.broken, -entry.weakest.value if entry.weakest else 1.0))
    return [replace(entry, number=place) for place, entry in enumerate(made, 1)]


def figures_of(runs: Sequence[LoadedRun], directories: Sequence[Path] = ()) -> list[Figure]:
    """The map and the frontier of runs, as far as there is something to draw; `directories` as of `lines_of`."""
    labels = attack_labels([run.result for run in runs])
    lines = lines_of([run for run in runs if run.result.before and run.result.after], directories)
    return figures_of_entries(entries(lines, labels), labels)


def figures_of_entries(shown: Sequence[Entry], labels: Sequence[str]) -> list[Figure]:
    """The map and the frontier of settings, as far as there is something to draw."""
    drawn = heat_map(shown, labels, "all-kept"), frontier(shown, labels, "all-frontier")
    return [figure for figure in drawn if figure is not None]


def heat_map(shown: Sequence[Entry], labels: Sequence[str], identifier: str) -> Figure | None:
    """Setting × attack: the share of the forgetting that was kept; None where nothing was attacked."""
    if not labels or not shown:
        return None
    names, drawn = short_labels(labels), shown[:MOST_ROWS]
    signs = [f"A{index}" for index in range(1, len(labels) + 1)]
    heads = signs if len(labels) > MOST_HEADS else [names[label] for label in labels]
    plot = Matrix(heads, [(e.title, [_cell(e, label) for label in labels]) for e in drawn], f"{identifier}-hatch")
    plot.legend = [shade_key(f"kept-{shade}", text) for shade, text in enumerate(SHADES)]
    plot.legend += [
        band_key(f"{identifier}-key", "can't tell", "?"),
        shade_key("collapsed", "collapsed", "✗"),
        shade_key("none", "not attacked", MISSING),
    ]
    if len(labels) > MOST_HEADS:
        plot.legend += [Key(Markup(""), names[label], sign) for sign, label in zip(signs, labels, strict=True)]
    caption = "The share of the forgetting that each attack left, in per cent, the mean over a setting's runs."
    if any(entry.line.reached is False for entry in drawn):
        caption += " † never reached its sweep's target: not comparable."
    if len(shown) > len(drawn):
        caption += f" The {len(drawn)} settings that kept most; {len(shown) - len(drawn)} more stand in the table."
    table = [[e.title, names[label], *_row(e, label)] for e in shown for label in labels]
    weakest = [e.weakest.value for e in shown if e.weakest]
    span = ""
    if weakest:
        span = f"; under its hardest attack a setting kept {percent(min(weakest))} to {percent(max(weakest))}"
    return Figure(
        plot,
        identifier,
        "Forgetting kept under each attack",
        caption,
        f"{len(shown)} settings under {len(labels)} attacks{span}; the table has every value",
        header=["setting", "attack", "kept", "95 % interval", "worst run", "outcome"],
        table=table,
    )


def frontier(shown: Sequence[Entry], labels: Sequence[str], identifier: str) -> Figure | None:
    """Forgetting, utility and robustness of each setting, and which of them no other beats in all three. None where no
    setting has both a forget and a retain metric."""
    axes = axes_of([run.result for entry in shown for run in entry.line.runs])
    if axes is None:
        return None
    after = {e: (a[0], b[0]) for e in shown if (a := e.line.metric(axes[0])) and (b := e.line.metric(axes[1]))}
    if not after:
        return None
    ends = {e: end for e in after if e.weakest and (end := _attacked(e, axes)) is not None}
    plot = plane(axes, *zip(*(*after.values(), *ends.values()), strict=True), clear=True)
    best = unbeaten({entry: _merits(entry, axes, place) for entry, place in after.items() if _counts(entry, labels)})
    plot.strokes([(*after[entry], *end) for entry, end in ends.items() if entry in best], "join attack")
    plot.strokes([(*after[entry], *end) for entry, end in ends.items() if entry not in best], "join attack behind")
    table = []
    for entry, place in after.items():
        kind = "broken" if entry.broken else "survived" if _survived(entry) else "after"
        class_ = CLASSES[kind] if entry in best else f"{CLASSES[kind]} behind"
        ending = f"; the hardest attack leaves {percent(entry.weakest.value)}" if entry.weakest else ""
        values = ", ".join(f"{words(key)} {number(value)}" for key, value in zip(axes, place, strict=True))
        plot.mark(place, kind, class_, hint=f"{entry.title}: {values}{ending}")
        kept = kept_text(entry.weakest.value) if entry.weakest else MISSING
        table.append([entry.title, *map(number, place), kept, "yes" if entry in best else "no"])
    others = [entry for entry in after if entry not in best][:MOST_NUMBERED]
    for entry in [*best, *others]:
        plot.sign(after[entry], str(entry.number))
    plot.legend = [
        mark_key("survived", "reference", "survived every attack made on it"),
        mark_key("after", "after", "not attacked, or did not survive an attack"),
        mark_key("broken", "attack", "collapsed or failed"),
    ]
    return Figure(
        plot,
        identifier,
        "The frontier of forgetting, utility and robustness",
        "Each setting after unlearning under its number in the map, with a tail to where its hardest attack brought "
        "it. Best is up and to the left, with no tail. Faint: off the frontier, for another one is at least as good in "
        "all three, it broke or never reached its target (†), or nobody can tell what an attack left.",
        f"On the frontier: {'; '.join(entry.title for entry in best) or 'none'}",
        header=["setting", *map(words, axes), "kept under the hardest attack", "on the frontier"],
        table=table,
    )


def unbeaten(merits: Mapping[Name, Sequence[float]]) -> list[Name]:
    """Those that no other is at least as good as in everything and better than in something (more is better)."""

    def beaten(own: Sequence[float]) -> bool:
        return any(
            all(a >= b for a, b in zip(other, own, strict=True)) and tuple(other) != tuple(own)
            for other in merits.values()
        )

    return [name for name, own in merits.items() if not beaten(own)]


def _counts(entry: Entry, labels: Sequence[str]) -> bool:
    """Whether it can be on the frontier: nothing broke, and what each attack left is known."""
    return not entry.broken and entry.line.reached is not False and set(labels) <= entry.kept.keys()


def _merits(entry: Entry, axes: tuple[str, str], place: tuple[float, float]) -> list[float]:
    signed = [-v if Column(k).better.startswith("lower") else v for k, v in zip(axes, place, strict=True)]
    return [*signed, entry.weakest.value] if entry.weakest else signed


def _survived(entry: Entry) -> bool:
    return bool(entry.line.attacks) and all(attack.survived for attack in entry.line.attacks)


def _attacked(entry: Entry, axes: tuple[str, str]) -> tuple[float, float] | None:
    """Where the hardest attack brought a setting: the means over its runs."""
    label = min(entry.kept, key=lambda label: entry.kept[label].value)
    both = [a.metrics for a in entry.line.attacks_of(label) if set(axes) <= a.metrics.keys()]
    if not both:
        return None
    forget, retain = (statistics.fmean(metrics[key].value for metrics in both) for key in axes)
    return forget, retain


def _cell(entry: Entry, label: str) -> Cell:
    kept, interval, worst, outcome = _row(entry, label)
    share = entry.kept.get(label)
    about = f"{entry.title}, {label}: {kept}"
    if interval != MISSING:
        about += f" (95 % interval {interval})"
    if worst != MISSING and len(entry.line.runs) > 1:
        about += f", worst run {worst}"
    about = f"{about}; {outcome}"
    attacks = entry.line.attacks_of(label)
    if share is None:
        if all(attack.collapsed for attack in attacks) if attacks else _collapsed(entry):
            return Cell("collapsed", "✗", about)
        return Cell("unclear", "?", about) if attacks else Cell("none", MISSING, about)
    marks = ("✗" if any(a.collapsed for a in attacks) else "") + ("?" if any(a.kept is None for a in attacks) else "")
    shade = min(int(share.value * len(SHADES)), len(SHADES) - 1)
    return Cell(f"kept-{shade}", f"{100 * share.value:.0f}{' ' if marks else ''}{marks}", about)


def _collapsed(entry: Entry) -> bool:
    return all(run.result.status == "collapsed" for run in entry.line.runs)


def _row(entry: Entry, label: str) -> list[str]:
    """Kept, its interval, the worst run and the outcomes under an attack, as text."""
    attacks, share = entry.line.attacks_of(label), entry.kept.get(label)
    outcomes = [attack.outcome for attack in attacks]
    counted = ", ".join(f"{outcomes.count(o)} of {len(outcomes)} {o}" for o in dict.fromkeys(outcomes))
    if not attacks:
        why = "the model collapsed before it" if _collapsed(entry) else "not attacked so"
        return [MISSING, MISSING, MISSING, why]
    if share is None:
        return [MISSING if all(attack.collapsed for attack in attacks) else kept_text(None), MISSING, MISSING, counted]
    interval = f"{percent(share.interval[0])} to {percent(share.interval[1])}" if share.interval else MISSING
    return [percent(share.value), interval, percent(share.worst), counted]
