"""Which settings keep their forgetting better than others: shares kept, with intervals and significance.

Runs that differ by their seed alone are one *line*. A line's share kept under an attack is computed over all samples of
its runs and of the attack's seeds, as `letgo.metrics.robustness.kept_share` does it, the smallest over the metrics:

    kept = min over metrics of clip( (before − attacked) / (before − after), 0, 1 )

Intervals resample groups (a person, a country) with everything that was measured of them. Two lines are compared on the
same resampled groups (a paired bootstrap), two-sided, and Holm's correction is applied over all comparisons under one
attack. Only rows that the attacker did not train on count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from letgo.metrics.robustness import LEAST_FORGETTING
from letgo.report.load import Run
from letgo.report.settings import NEVER, plain

RESAMPLES = 2000
LEVEL = 0.05
METRICS = {"accuracy": 0.25, "probability": 0.0}
"""Sample scores that forgetting is judged by, and what a model that knows nothing scores."""
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


def compare_all(lines: Sequence[Line], labels: Sequence[str]) -> tuple[Line | None, dict[Line, dict[str, Kept]]]:
    """`baseline_of` the lines, and by line what it kept under each attack that it can be judged under."""
    baseline = baseline_of(lines)
    found: dict[Line, dict[str, Kept]] = {line: {} for line in lines}
    for label in labels:
        for one in compare(lines, label, baseline):
            found[one.line][label] = one
    return baseline, found


def compare(lines: Sequence[Line], label: str, against: Line | None) -> list[Kept]:
    """What each line kept under an attack, and how much more than the baseline did.

    Lines whose runs carry no samples of the attack, or that had forgotten nothing, are left out.
    """
    drawn: list[tuple[Line, _Tally]] = []
    for line in lines:
        tally = _tally(line, label)
        if tally is not None:
            drawn.append((line, tally))
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


class _Tally:
    """Sums of scores by metric, stage and group: all that a resampling of groups needs."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, np.ndarray]] = {}
        self.groups: set[str] = set()

    def add(self, metric: str, group: str, before: float, after: float, attacked: float) -> None:
        cells = self.sums.setdefault(metric, {})
        if group not in cells:
            cells[group] = np.zeros(4)
        cells[group] += (before, after, attacked, 1.0)
        self.groups.add(group)

    def kept(self, groups: Sequence[str], counts: np.ndarray) -> np.ndarray:
        """The share kept for each row of group counts, shape (rows,); NaN where none of the groups was measured."""
        shares = []
        for metric, cells in self.sums.items():
            table = np.stack([cells.get(group, np.zeros(4)) for group in groups])
            before, after, attacked, number = (counts @ table).T
            with np.errstate(invalid="ignore", divide="ignore"):
                before, after, attacked = before / number, after / number, attacked / number
                forgotten = before - after
                share = np.clip((before - attacked) / forgotten, 0.0, 1.0)
                least = np.maximum(LEAST_FORGETTING * np.maximum(before - METRICS[metric], 0.0), 0.0)
            shares.append(np.where(np.isnan(forgotten), np.nan, np.where(forgotten > least, share, 0.0)))
        result: np.ndarray = np.min(np.stack(shares), axis=0)
        return result


def _tally(line: Line, label: str) -> _Tally | None:
    tally = _Tally()
    for run in line.runs:
        if not any(attack.label == label for attack in run.result.attacks):
            continue
        rows = [row for row in run.samples() if row.get("set") == "forget"]
        stages: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in rows:
            if row["stage"] in ("before", "after"):
                stages.setdefault(row["stage"], {})[str(row["id"])] = row
        before, after = stages.get("before", {}), stages.get("after", {})
        for row in rows:
            identifier = str(row["id"])
            if row["stage"] != f"attack:{label}" or row.get("seen") or not {identifier} <= before.keys() & after.keys():
                continue
            for metric in METRICS:
                scores = [one["scores"].get(metric) for one in (before[identifier], after[identifier], row)]
                if None not in scores:
                    tally.add(metric, str(row["group"]), *scores)
    return tally if tally.groups else None
