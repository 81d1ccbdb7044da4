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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from letgo.benchmarks import BENCHMARKS
from letgo.core.catalog import parse_spec
from letgo.metrics.robustness import kept_shares
from letgo.report.load import Run
from letgo.report.settings import NEVER, plain
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
    runs: tuple[Run, ...]
    reached: bool | None = None
    """Whether it reached its sweep's target; None where there was none."""


@dataclass(frozen=True)
class Kept:
    """What one line kept under one attack.

    Attributes:
        value, low, high: the share kept and its 95 % interval; n is the number of groups it is over.
        worst: the least over the runs, as each recorded it.
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


def lines_of(runs: Sequence[Run], varying: Sequence[str]) -> list[Line]:
    """Runs gathered into lines, named by the settings in which the lines differ, in order of meeting."""
    gathered: dict[str, list[Run]] = {}
    for run in runs:
        config = run.result.config
        key = repr(sorted((k, plain(v)) for k, v in config.items() if k not in _NOT_A_LINE))
        gathered.setdefault(key, []).append(run)
    names = [name for name in varying if name not in _NOT_A_LINE]
    found = []
    for members in gathered.values():
        config = members[0].result.config
        told = [plain(config[name]) if name in ("objective", "optimizer") else f"{name} {plain(config[name])}"
                for name in names if config.get(name) is not None]  # fmt: skip
        found.append(Line(", ".join(told) or "all runs", str(config.get("optimizer", "")), tuple(members)))
    return found


def baseline_of(lines: Sequence[Line]) -> Line | None:
    """What the others are held against: of the lines that were attacked the first that reached its sweep's target, for
    what another one kept may come of having forgotten less; the first of all where none did."""
    attacked = [line for line in lines if any(run.result.attacks for run in line.runs)]
    return next((line for line in attacked if line.reached is not False), attacked[0] if attacked else None)


@dataclass(frozen=True)
class Comparison:
    """What each line kept under each attack that it can be judged under.

    Attributes:
        baseline: `baseline_of` the lines.
        left_out: lines that were attacked but can't be judged, under which attack, and the reason.
    """

    baseline: Line | None
    kept: Mapping[Line, Mapping[str, Kept]]
    left_out: tuple[str, ...]


def compare_all(lines: Sequence[Line], labels: Sequence[str]) -> Comparison:
    """Every line under every attack, against `baseline_of` the lines."""
    baseline = baseline_of(lines)
    kept: dict[Line, dict[str, Kept]] = {line: {} for line in lines}
    left_out: dict[tuple[str, str], list[str]] = {}
    for label in labels:
        tallies = {line: _Tally.of(line, label) for line in lines}
        for one in _compared(tallies, label, baseline):
            kept[one.line][label] = one
        for line, tally in tallies.items():
            if tally.missing:
                left_out.setdefault((label, tally.missing), []).append(line.name)
    reasons = (f"{'; '.join(names)} under {label}: {missing}" for (label, missing), names in left_out.items())
    return Comparison(baseline, kept, tuple(reasons))


def compare(lines: Sequence[Line], label: str, against: Line | None) -> list[Kept]:
    """What each line kept under an attack, and how much more than the baseline did. Lines that were not attacked so, or
    that can't be judged (`Comparison.left_out`), are left out."""
    return _compared({line: _Tally.of(line, label) for line in lines}, label, against)


def _compared(tallies: Mapping[Line, _Tally], label: str, against: Line | None) -> list[Kept]:
    drawn = [(line, tally) for line, tally in tallies.items() if tally.groups and not tally.missing]
    if not drawn:
        return []
    groups = sorted({group for _, tally in drawn for group in tally.groups})
    draws = np.random.default_rng(_SEED).integers(0, len(groups), size=(RESAMPLES, len(groups)))
    counts = np.stack([np.bincount(draw, minlength=len(groups)) for draw in draws])
    shares = [tally.kept(groups, counts) for _, tally in drawn]
    plain_counts = np.ones((1, len(groups)))
    place = next((i for i, (line, _) in enumerate(drawn) if line is against), None)
    found: list[Kept] = []
    values = [float(tally.kept(groups, plain_counts)[0]) for _, tally in drawn]
    for (line, tally), share, value in zip(drawn, shares, values, strict=True):
        low, high = np.nanquantile(share, [0.025, 0.975])
        attacks = [a for run in line.runs for a in run.result.attacks if a.label == label]
        found.append(
            Kept(
                line,
                value,
                float(low),
                float(high),
                len(tally.groups),
                min(a.kept for a in attacks),
                sum(a.survived for a in attacks),
                len(attacks),
            )
        )
    if place is None:
        return found
    others = [i for i in range(len(found)) if i != place]
    corrected = holm([_two_sided(shares[i] - shares[place]) for i in others])
    for i, p in zip(others, corrected, strict=True):
        found[i] = replace(found[i], difference=values[i] - values[place], p=p)
    return found


def _two_sided(gap: np.ndarray) -> float:
    """The p-value of a bootstrapped difference."""
    gap = gap[~np.isnan(gap)]
    # With one draw added on either side: no p-value is ever 0.
    below, above = (np.sum(gap <= 0) + 1) / (len(gap) + 1), (np.sum(gap >= 0) + 1) / (len(gap) + 1)
    return min(1.0, 2.0 * float(min(below, above)))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in the order given."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, largest = [0.0] * len(values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
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
    """Sums of scores by headline, stage and group, over a line's runs under an attack: all that a resampling of groups
    needs. `missing` says why the line can't be judged under the attack; "" where it can, or was not attacked so."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, np.ndarray]] = {}
        self.floors: dict[str, float] = {}
        self.groups: set[str] = set()
        self.missing = ""

    @classmethod
    def of(cls, line: Line, label: str) -> _Tally:
        tally = cls()
        attacked = [(run, a) for run in line.runs for a in run.result.attacks if a.label == label]
        for run, attack in attacked:
            tally._add_run(run, attack)
        if attacked and not tally.groups and not tally.missing:
            tally.missing = "no sample was scored before, after and now and not trained on by the attacker"
        return tally

    def _add_run(self, run: Run, attack: AttackResult) -> None:
        headlines = headlines_of(run.result)
        if not headlines:
            self.missing = "its record does not name the metrics that forgetting is judged by"
            return
        stages: dict[str, list[dict[str, Any]]] = {}
        for row in run.samples():
            stages.setdefault(row["stage"], []).append(row)
        before, after = ({_name(row): row for row in stages.get(stage, ())} for stage in ("before", "after"))
        known = before.keys() & after.keys()
        attacked = [row for row in stages.get(f"attack:{attack.label}", ()) if _name(row) in known]
        for metric, floor in headlines.items():
            name, _, score = metric.partition("_")
            scored = [row for row in attacked if row.get("set") == name and score in row["scores"]]
            if not scored and metric in run.result.before.keys() & run.result.after.keys() & attack.metrics.keys():
                self.missing = f"its samples have no scores of {metric}"
            self.floors[metric] = floor
            for row in (row for row in scored if not row.get("seen")):
                values = [sample["scores"].get(score) for sample in (before[_name(row)], after[_name(row)], row)]
                if None not in values:
                    self._add(metric, str(row["group"]), values)

    def _add(self, metric: str, group: str, values: Sequence[float]) -> None:
        cells = self.sums.setdefault(metric, {})
        if group not in cells:
            cells[group] = np.zeros(4)
        cells[group] += (*values, 1.0)
        self.groups.add(group)

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


def _name(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("set")), str(row["id"])
