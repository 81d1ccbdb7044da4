"""Which settings keep their forgetting better than others: shares kept, over seeds.

Runs that differ by their seed alone are one *line*. What a run kept under an attack is what its record says (the mean
over the attack's seeds), so that every page shows one number; a line's value is the mean over its runs. What two lines
kept is compared over the seeds that both have, by Student's paired test: two runs of one setting differ, and a test
that draws only questions again takes that for a difference. With fewer than `LEAST_SEEDS` paired seeds there is a
difference and its spread, and no p-value. Holm's correction is applied over all comparisons under one attack. Lines are
compared with a baseline that is named beforehand; what is picked as the best of the same figures looks better than it
is.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from letgo.core.errors import UserError
from letgo.core.statistics import Difference, Interval, holm, paired
from letgo.report.audited import name_of_model
from letgo.report.load import LoadedRun, find_sweep
from letgo.report.numbers import MISSING, words
from letgo.report.settings import ALWAYS, NEVER, plain, varying
from letgo.runs.results import AttackResult

LEVEL = 0.05
MARGIN = 0.05
"""Two lines are alike where the whole interval of their difference lies within this share of the forgetting."""
_SEEDS = ("seed", "data_seed")
_NOT_A_LINE = (*NEVER, *_SEEDS, "attacks")

Seed = tuple[str, ...]


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

    def by_seed(self, label: str) -> dict[Seed, float]:
        """What was kept under an attack, by the runs' seeds; of several runs of one seed the mean."""
        kept: dict[Seed, list[float]] = defaultdict(list)
        for run in self.runs:
            seed = tuple(str(run.result.config.get(name)) for name in _SEEDS)
            shares = (_share(attack) for attack in run.result.attacks if attack.label == label)
            kept[seed] += [share for share in shares if share is not None]
        return {seed: statistics.fmean(values) for seed, values in kept.items() if values}


@dataclass(frozen=True)
class Kept:
    """What one line kept under one attack.

    Attributes:
        value: the mean over its runs that the attack did not break; `worst` the least of them.
        interval: its 95 % interval over runs; of a single run, or of runs that show no spread, the one that the first
            recorded, over groups. None where there is neither.
        survived, of: how many of its attacks it survived, of those that tell or broke the model.
        difference: from the baseline, over paired seeds; None for the baseline, and where they have no seed in common.
        p: Holm's corrected p-value; None where the paired seeds are too few for one.
    """

    line: Line
    value: float
    interval: Interval | None
    worst: float
    survived: int
    of: int
    difference: Difference | None = None
    p: float | None = None

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < LEVEL

    @property
    def alike(self) -> bool:
        gap = self.difference
        return gap is not None and gap.low >= -MARGIN and gap.high <= MARGIN

    @property
    def against(self) -> str:
        """The difference in words, with all that is known of its sureness; empty where there is none."""
        gap = self.difference
        if gap is None:
            return ""
        if gap.seeds == 1:
            return f"{_points(gap.value)} points over 1 paired seed"
        if self.p is None:
            return f"{_points(gap.value)} points over {gap.seeds} paired seeds, spread {100 * gap.spread:.0f}"
        p = "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"
        alike = f", alike within {100 * MARGIN:.0f}" if self.alike else ""
        ends = f"{_points(gap.low)} to {_points(gap.high)}"
        return f"{_points(gap.value)} points ({ends}) over {gap.seeds} paired seeds, p {p}{alike}"


def lines_of(runs: Sequence[LoadedRun], directories: Sequence[Path] = ()) -> list[Line]:
    """Runs gathered into lines, named by the settings that tell the lines apart. A sweep in one of the `directories`
    says whether a line reached its target.

    Raises:
        UserError: some were scored by another engine (a server, or torch) than others.
    """
    _check_engines(runs)
    reached: dict[Path, bool | None] = {}
    for directory in directories:
        sweep = find_sweep(directory)
        for group in sweep.groups if sweep else ():
            reached |= {(directory / cell.run).resolve(): group.reached for cell in group.cells if cell.run}
    members: dict[str, list[LoadedRun]] = defaultdict(list)
    for run in runs:
        config = run.result.config
        members[repr(sorted((k, plain(v)) for k, v in config.items() if k not in _NOT_A_LINE))].append(run)
    lines = []
    for (first, *others), name in zip(members.values(), _names([first for first, *_ in members.values()]), strict=True):
        optimizer = str(first.result.config.get("optimizer", ""))
        lines.append(Line(name, optimizer, (first, *others), reached.get(first.directory.resolve())))
    return lines


def _names(runs: Sequence[LoadedRun]) -> list[str]:
    """A name for each run: the values of those settings that tell it from the others, and no more of them than it
    takes; of an audit its model."""
    configs = [run.result.config for run in runs]
    parts: list[list[str]] = [[] for _ in runs]
    told: list[tuple[str, ...]] = [() for _ in runs]
    for name in (name for name in varying(configs, most=None) if name not in _NOT_A_LINE):
        finer = [(*values, plain(config.get(name))) for values, config in zip(told, configs, strict=True)]
        if len(set(finer)) == len(set(told)) and len(runs) > 1:
            continue
        told = finer
        for own, values in zip(parts, told, strict=True):
            if values[-1] != MISSING:
                own.append(values[-1] if name in ALWAYS else f"{words(name)} {values[-1]}")
    names = [
        ", ".join(own) or "default settings"
        if run.result.audit is None
        else f"{run.directory.resolve().name}, an audit of {name_of_model(run.result)}"
        for own, run in zip(parts, runs, strict=True)
    ]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def _check_engines(runs: Sequence[LoadedRun]) -> None:
    """Engines give the same weights different scores."""
    engines = {repr(run.result.config.get("engine")): run for run in runs}
    if len(engines) > 1:
        first, second, *_ = engines.values()
        names = [(run.result.config.get("engine") or {"server": "torch"}).get("server") for run in (first, second)]
        raise UserError(
            f"{first.directory} was scored by {names[0]} and {second.directory} by {names[1]}, or by another version "
            "or level of it: two engines can't be compared\n  name runs of one engine"
        )


def baseline_of(lines: Sequence[Line]) -> Line | None:
    """What the others are compared with: the first line that was attacked and reached its sweep's target (a line that
    missed it may keep more because it forgot less); the first that was attacked where none reached it."""
    attacked = [line for line in lines if line.attacks]
    return next((line for line in attacked if line.reached is not False), attacked[0] if attacked else None)


@dataclass(frozen=True)
class Comparison:
    """What each line kept under each attack, against a baseline. `left_out` names the lines, the attack, and what of
    them takes no part in the comparison."""

    baseline: Line | None
    kept: Mapping[Line, Mapping[str, Kept]]
    left_out: tuple[str, ...]


def compare_all(lines: Sequence[Line], labels: Sequence[str]) -> Comparison:
    """Every line under every attack, against `baseline_of` the lines."""
    baseline = baseline_of(lines)
    kept: dict[Line, dict[str, Kept]] = {line: {} for line in lines}
    left_out: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label in labels:
        for under_attack in compare(lines, label, baseline):
            kept[under_attack.line][label] = under_attack
        for line in lines:
            for reason in _missing(line, label, baseline):
                left_out[label, reason].append(line.name)
    reasons = (f"{'; '.join(names)} under {label}: {reason}" for (label, reason), names in left_out.items())
    return Comparison(baseline, kept, tuple(reasons))


def compare(lines: Sequence[Line], label: str, against: Line | None) -> list[Kept]:
    """What each line kept under an attack, and how much more than the baseline did. Lines without a share kept under it
    are left out."""
    kept = [found for line in lines if (found := _kept(line, label)) is not None]
    if against is None:
        return kept
    kept = [found if found.line is against else _against(found, against, label) for found in kept]
    tested = [i for i, found in enumerate(kept) if found.p is not None]
    for i, p in zip(tested, holm([kept[i].p or 0.0 for i in tested]), strict=True):
        kept[i] = replace(kept[i], p=p)
    return kept


def _share(attack: AttackResult) -> float | None:
    """What it left; None where that is not known, and where it broke the model: what that has kept proves nothing."""
    return None if attack.collapsed else attack.kept


def _kept(line: Line, label: str) -> Kept | None:
    attacks = line.attacks_of(label)
    telling = [(attack, share) for attack in attacks if (share := _share(attack)) is not None]
    if not telling:
        return None
    values = [share for _, share in telling]
    interval = telling[0][0].kept_ci95
    if len(set(values)) > 1:
        over_runs = paired(values, [0.0] * len(values))
        interval = max(over_runs.low, 0.0), min(over_runs.high, 1.0)
    survived, of = sum(attack.survived for attack, _ in telling), sum(a.outcome != "can't tell" for a in attacks)
    return Kept(line, statistics.fmean(values), interval, min(values), survived, of)


def _against(kept: Kept, baseline: Line, label: str) -> Kept:
    ours, theirs = kept.line.by_seed(label), baseline.by_seed(label)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return kept
    difference = paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return replace(kept, difference=difference, p=difference.p)


def _missing(line: Line, label: str, baseline: Line | None) -> list[str]:
    """What of a line takes no part in the comparison under an attack, though it was attacked so."""
    # Without the model before unlearning there is nothing to compare, and the page says so.
    shares = [run.result for run in line.runs if not run.result.without_original]
    attacks = [attack for result in shares for attack in result.attacks if attack.label == label]
    unknown = sum(attack.outcome == "can't tell" for attack in attacks)
    broken = sum(attack.collapsed for attack in attacks)
    reasons = [f"what was kept can't be told in {unknown} of its runs"] if unknown else []
    reasons += [f"it broke {broken} of its models, which proves nothing"] if broken else []
    ours, theirs = line.by_seed(label), {} if baseline is None else baseline.by_seed(label)
    if theirs and (alone := sum(seed not in theirs for seed in ours)):
        reasons.append(f"{alone} of its {len(ours)} seeds {'is' if alone == 1 else 'are'} not among the baseline's")
    return reasons


def _points(share: float) -> str:
    return f"{'−' if share < 0 else '+'}{abs(share) * 100:.0f}"
