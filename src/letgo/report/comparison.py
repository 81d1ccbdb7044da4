"""Which settings keep their forgetting better than others: shares kept, with intervals and significance.

Runs that differ by their seed alone are one *line*. A line's share kept under an attack is computed over all samples of
its runs and of the attack's seeds, as `letgo.metrics.robustness.kept_share` does it, the smallest over the headline
metrics of the runs' benchmark:

    kept = min over headlines of clip( (before − attacked) / (before − after), 0, 1 )

Intervals resample groups (a person, a country) with everything that was measured of them. Two lines are compared on the
same resampled groups (a paired bootstrap), two-sided, and Holm's correction is applied over all comparisons under one
attack. Only rows that the attacker did not train on count.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from letgo.benchmarks import BENCHMARKS
from letgo.core.catalog import parse_spec
from letgo.metrics.robustness import kept_shares
from letgo.report.load import LoadedRun, find_sweep
from letgo.report.settings import NEVER, plain, varying
from letgo.runs.results import AttackResult, Result

RESAMPLES = 2000
LEVEL = 0.05
_SEED = 20240607
_NOT_A_LINE = (*NEVER, "seed", "data_seed", "attacks")


@dataclass(frozen=True, eq=False)
class Line:
    """Runs that differ by their seed alone."""

    name: str
    optimizer: str
    runs: tuple[LoadedRun, ...]
    reached: bool | None = None
    """Whether it reached its sweep's target; None where there was none."""

    @property
    def attacks(self) -> list[AttackResult]:
        return [attack for run in self.runs for attack in run.result.attacks]

    def attacks_of(self, label: str) -> list[AttackResult]:
        return [attack for attack in self.attacks if attack.label == label]

    def metric(self, key: str) -> tuple[float, float, float] | None:
        """Mean, least and largest over the runs after unlearning; None where no run has it."""
        values = [run.result.after[key].value for run in self.runs if key in run.result.after]
        return (statistics.fmean(values), min(values), max(values)) if values else None


@dataclass(frozen=True)
class Kept:
    """What one line kept under one attack.

    Attributes:
        value, low, high: the share kept and its 95 % interval; n is the number of groups it is over.
        worst: the least over the runs, as each recorded it.
        survived, of: how many of its attacks it survived.
        difference, p: against the baseline, and Holm's corrected p-value; None for the baseline, and for all where it
            was not attacked so.
    """

    line: Line
    value: float
    low: float
    high: float
    n: int
    worst: float
    survived: int
    of: int
    difference: float | None = None
    p: float | None = None

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < LEVEL

    @property
    def against(self) -> str:
        """The difference and its p-value as text; empty where there is none."""
        if self.p is None or self.difference is None:
            return ""
        sign = "+" if self.difference >= 0 else "−"
        p = "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"
        return f"{sign}{abs(self.difference) * 100:.0f} points, p {p}"


def lines_of(runs: Sequence[LoadedRun], directories: Sequence[Path] = ()) -> list[Line]:
    """Runs gathered into lines, named by the settings in which the lines differ. A sweep in one of the `directories`
    says whether a line reached its target."""
    reached: dict[Path, bool | None] = {}
    for directory in directories:
        sweep = find_sweep(directory)
        for group in sweep.groups if sweep else ():
            reached |= {(directory / cell.run).resolve(): group.reached for cell in group.cells if cell.run}
    members: dict[str, list[LoadedRun]] = defaultdict(list)
    for run in runs:
        config = run.result.config
        members[repr(sorted((k, plain(v)) for k, v in config.items() if k not in _NOT_A_LINE))].append(run)
    names = [name for name in varying([run.result.config for run in runs]) if name not in _NOT_A_LINE]
    lines = []
    for first, *others in members.values():
        config = first.result.config
        values = {name: plain(config[name]) for name in names if config.get(name) is not None}
        parts = [text if name in ("objective", "optimizer") else f"{name} {text}" for name, text in values.items()]
        name, optimizer = ", ".join(parts) or "all runs", str(config.get("optimizer", ""))
        lines.append(Line(name, optimizer, (first, *others), reached.get(first.directory.resolve())))
    return lines


def baseline_of(lines: Sequence[Line]) -> Line | None:
    """What the others are compared with: the first line that was attacked and reached its sweep's target (a line that
    missed it may keep more because it forgot less); the first that was attacked where none reached it."""
    attacked = [line for line in lines if line.attacks]
    return next((line for line in attacked if line.reached is not False), attacked[0] if attacked else None)


@dataclass(frozen=True)
class Comparison:
    """What each line kept under each attack that it can be judged under, against a baseline. `left_out` names the lines
    that were attacked but can't be judged, the attack, and the reason."""

    baseline: Line | None
    kept: Mapping[Line, Mapping[str, Kept]]
    left_out: tuple[str, ...]


def compare_all(lines: Sequence[Line], labels: Sequence[str]) -> Comparison:
    """Every line under every attack, against `baseline_of` the lines."""
    baseline = baseline_of(lines)
    kept: dict[Line, dict[str, Kept]] = {line: {} for line in lines}
    left_out: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label in labels:
        tallies = {line: _Tally(line, label) for line in lines}
        for under_attack in _compared(tallies, label, baseline):
            kept[under_attack.line][label] = under_attack
        for line, tally in tallies.items():
            if tally.missing:
                left_out[label, tally.missing].append(line.name)
    reasons = (f"{'; '.join(names)} under {label}: {missing}" for (label, missing), names in left_out.items())
    return Comparison(baseline, kept, tuple(reasons))


def compare(lines: Sequence[Line], label: str, against: Line | None) -> list[Kept]:
    """What each line kept under an attack, and how much more than the baseline did. Lines that were not attacked so, or
    that can't be judged (`Comparison.left_out`), are left out."""
    return _compared({line: _Tally(line, label) for line in lines}, label, against)


def _compared(tallies: Mapping[Line, _Tally], label: str, against: Line | None) -> list[Kept]:
    judged = {line: tally for line, tally in tallies.items() if tally.groups and not tally.missing}
    if not judged:
        return []
    groups = sorted({group for tally in judged.values() for group in tally.groups})
    draws = np.random.default_rng(_SEED).integers(0, len(groups), size=(RESAMPLES, len(groups)))
    counts = np.stack([np.bincount(draw, minlength=len(groups)) for draw in draws])
    shares = {line: tally.kept(groups, counts) for line, tally in judged.items()}
    kept = {}
    for line, tally in judged.items():
        value = float(tally.kept(groups, np.ones((1, len(groups))))[0])
        low, high = map(float, np.nanquantile(shares[line], [0.025, 0.975]))
        attacks = line.attacks_of(label)
        worst, survived = min(a.kept for a in attacks), sum(a.survived for a in attacks)
        kept[line] = Kept(line, value, low, high, len(tally.groups), worst, survived, len(attacks))
    if against not in kept:
        return list(kept.values())
    others = [line for line in kept if line is not against]
    corrected = holm([_two_sided(shares[line] - shares[against]) for line in others])
    for line, p in zip(others, corrected, strict=True):
        kept[line] = replace(kept[line], difference=kept[line].value - kept[against].value, p=p)
    return list(kept.values())


def _two_sided(gap: np.ndarray) -> float:
    """The p-value of a bootstrapped difference."""
    gap = gap[~np.isnan(gap)]
    # With one draw added on either side: no p-value is ever 0.
    below, above = (np.sum(gap <= 0) + 1) / (len(gap) + 1), (np.sum(gap >= 0) + 1) / (len(gap) + 1)
    return min(1.0, 2.0 * float(min(below, above)))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in the order given."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def headlines_of(result: Result) -> dict[str, float]:
    """The metrics by which a result's benchmark judges forgetting, with their floors: as it records them, else as the
    benchmark that its configuration names has them; empty where that is not known."""
    if result.headlines:
        return result.headlines
    benchmark, forget = (result.config.get(key) for key in ("benchmark", "forget"))
    name = parse_spec(str(benchmark))[0] if benchmark else "rows" if forget else ""
    return {h.metric: h.floor for h in BENCHMARKS.record(name).headlines} if name in BENCHMARKS else {}


class _Tally:
    """Sums of scores by headline and group (before, after, attacked, number), over a line's runs under an attack: all
    that a resampling of groups needs. `missing` says why the line can't be judged under the attack; "" where it can, or
    was not attacked so."""

    def __init__(self, line: Line, label: str) -> None:
        self.sums: dict[str, dict[str, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(4)))
        self.floors: dict[str, float] = {}
        self.groups: set[str] = set()
        self.missing = ""
        attacked = [(run, attack) for run in line.runs for attack in run.result.attacks if attack.label == label]
        for run, attack in attacked:
            self._add_run(run, attack)
        if attacked and not self.groups and not self.missing:
            self.missing = "no sample was scored before, after and now and not trained on by the attacker"

    def _add_run(self, run: LoadedRun, attack: AttackResult) -> None:
        headlines = headlines_of(run.result)
        if not headlines:
            self.missing = "its record does not name the metrics that forgetting is judged by"
            return
        stages: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in run.samples():
            stages[row["stage"]].append(row)
        before, after = ({_identity(row): row for row in stages[stage]} for stage in ("before", "after"))
        known = before.keys() & after.keys()
        attacked = [row for row in stages[f"attack:{attack.label}"] if _identity(row) in known]
        for metric, floor in headlines.items():
            name, _, score = metric.partition("_")
            scored = [row for row in attacked if row.get("set") == name and score in row["scores"]]
            if not scored and metric in run.result.before.keys() & run.result.after.keys() & attack.metrics.keys():
                self.missing = f"its samples have no scores of {metric}"
            self.floors[metric] = floor
            for row in (row for row in scored if not row.get("seen")):
                samples = (before[_identity(row)], after[_identity(row)], row)
                values = [sample["scores"].get(score) for sample in samples]
                if None not in values:
                    self.sums[metric][str(row["group"])] += (*values, 1.0)
                    self.groups.add(str(row["group"]))

    def kept(self, groups: Sequence[str], counts: np.ndarray) -> np.ndarray:
        """The share kept for each row of group counts, shape (rows,); NaN where none of the groups was measured."""
        shares = []
        for metric, cells in self.sums.items():
            table = np.stack([cells.get(group, np.zeros(4)) for group in groups])
            before, after, attacked, number = (counts @ table).T
            with np.errstate(invalid="ignore", divide="ignore"):
                means = before / number, after / number, attacked / number
                shares.append(kept_shares(*means, floor=self.floors[metric]))
        result: np.ndarray = np.min(np.stack(shares), axis=0)
        return result


def _identity(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("set")), str(row["id"])
