"""Each group's setting at matched forgetting: robustness is compared between runs that forgot equally well.

A group's candidates are run on its first seed, without attacks. One has *reached* where it did not collapse, the
`target` holds and the `bound` holds. Of those that reached, the one whose forgetting is nearest to the target is taken:
more would be forgetting that the others were not asked for. Where none did, the nearest that keeps the bound is taken,
and the group is said never to have reached the target.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.core.catalog import did_you_mean
from letgo.core.errors import UserError
from letgo.core.search import Range, TreeSearch, combinations
from letgo.runs import RunRecord
from letgo.runs.query import MISSING, Comparison, Query, parse_query
from letgo.runs.results import Result

_OWN = ("target", "bound", "sampler", "trials", "seed")
MEETS, MISSES, BROKEN = "reached", "missed", "collapsed"


@dataclass(frozen=True)
class Tune:
    """What is tuned: for each key, by the optimizer's name as a shell pattern, the values to try or their range."""

    values: Mapping[str, Mapping[str, Sequence[Any] | Range]]
    target: Query
    bound: Query | None
    trials: int = 0
    seed: int = 0

    def of(self, optimizer: str) -> dict[str, Sequence[Any] | Range]:
        """What is tuned for one optimizer: the first pattern that fits, an exact name before all."""
        chosen = {}
        for key, by_name in self.values.items():
            fitting = [name for name in by_name if name == optimizer]
            fitting += [name for name in by_name if fnmatch.fnmatchcase(optimizer, name)]
            if fitting:
                chosen[key] = by_name[fitting[0]]
        return chosen

    def first(self, optimizer: str) -> list[dict[str, Any]]:
        """A candidate to try settings with, before anything runs."""
        values = self.of(optimizer)
        return [{key: one.low if isinstance(one, Range) else one[0] for key, one in values.items()}]

    def next(self, optimizer: str, done: Sequence[Trial]) -> dict[str, Any] | None:
        """The candidate that comes after those done; None when there are no more.

        A grid is gone through with its numbers ascending; where a candidate collapsed, those that differ from it only
        by larger learning rates are passed over, for they would collapse too.
        """
        values = self.of(optimizer)
        if any(isinstance(one, Range) for one in values.values()):
            if len(done) >= self.trials:
                return None
            # Made anew from what is done, with a seed of its own for each draw: a resumed sweep draws the same.
            seed = self.seed * 10_007 + len(done)
            history = [(trial.changes, trial.distance) for trial in done]
            return TreeSearch(values, seed, self.trials, history=history, what="tuning over a range").ask()
        tried = [trial.changes for trial in done]
        for candidate in combinations({key: _ascending(one) for key, one in values.items()}):
            if candidate not in tried and not _hopeless(candidate, done):
                return candidate
        return None


@dataclass(frozen=True)
class Trial:
    """A candidate that was run: what it changed, how it ended, and how far from the target."""

    changes: Mapping[str, Any]
    verdict: str
    distance: float
    """0 on the target; larger for missing it, for forgetting more than asked, and most for breaking the model."""
    run: str


def judge(tune: Tune, changes: Mapping[str, Any], run: str, result: Result) -> Trial:
    """How a candidate's run stands to target and bound."""
    record = RunRecord.of(run, result)
    if result.status != "finished":
        return Trial(changes, BROKEN, 1e6, run)
    bound_missed = sum(_missed(c, record) for c in tune.bound.comparisons) if tune.bound else 0.0
    target_missed = sum(_missed(c, record) for c in tune.target.comparisons)
    reached = tune.target.matches(record) and (tune.bound is None or tune.bound.matches(record))
    overshoot = sum(_overshoot(c, record) for c in tune.target.comparisons)
    distance = overshoot if reached else 10.0 + target_missed + 100.0 * bound_missed
    return Trial(changes, MEETS if reached else MISSES, distance, run)


def choose(trials: Sequence[Trial]) -> Trial:
    """The trial that a group goes on with: the nearest to the target; the earlier where two are as near."""
    if not trials:
        raise UserError("no candidate was run, so none can be chosen")
    return min(trials, key=lambda trial: trial.distance)


def read_tune(given: Any, where: str) -> Tune:
    """Check a grid's `tune`."""
    if not isinstance(given, dict):
        raise UserError(f"{where}: 'tune' must be a mapping, not {given!r}")
    if "target" not in given:
        raise UserError(f"{where}: tune has no 'target', such as forget_accuracy <= 0.3{did_you_mean('target', given)}")
    keys = [key for key in given if key not in _OWN]
    if not keys:
        raise UserError(f"{where}: tune names nothing to tune, such as learning_rate: [1.0e-5, 1.0e-4]")
    values = {str(key): _by_name(where, str(key), given[key]) for key in keys}
    ranged = any(isinstance(one, Range) for by_name in values.values() for one in by_name.values())
    trials = given.get("trials", 0)
    if ranged and (not isinstance(trials, int) or trials < 1):
        raise UserError(f"{where}: tune has a range, so it needs 'trials', the number of candidates to draw")
    target = parse_query(str(given["target"]))
    bound = parse_query(str(given["bound"])) if given.get("bound") else None
    for query in filter(None, (target, bound)):
        if not query.comparisons or any(not isinstance(c.value, int | float) for c in query.comparisons):
            raise UserError(f"{where}: tune: {query.text!r} must compare a metric with a number")
    return Tune(values, target, bound, int(trials or 0), int(given.get("seed", 0)))


def _by_name(where: str, key: str, given: Any) -> dict[str, Sequence[Any] | Range]:
    if isinstance(given, dict) and not {"low", "high"} <= set(given):
        return {str(name): _one(where, f"{key}.{name}", one) for name, one in given.items()}
    return {"*": _one(where, key, given)}


def _one(where: str, key: str, given: Any) -> Sequence[Any] | Range:
    if isinstance(given, list) and given:
        return given
    if isinstance(given, dict):
        try:
            found = Range(float(given["low"]), float(given["high"]), bool(given.get("log", True)))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: tune.{key} must have numbers low and high, not {given!r}") from error
        if found.low >= found.high or (found.log and found.low <= 0):
            raise UserError(f"{where}: tune.{key}: low must be below high, and above 0 on a log scale, not {given!r}")
        return found
    raise UserError(f"{where}: tune.{key} must be a list of values or {{low, high}}, not {given!r}")


def _ascending(values: Sequence[Any] | Range) -> list[Any]:
    given = list(values) if not isinstance(values, Range) else []
    return sorted(given) if all(isinstance(v, int | float) for v in given) else given


def _hopeless(candidate: Mapping[str, Any], done: Sequence[Trial]) -> bool:
    """Whether a candidate differs from one that collapsed by larger learning rates alone."""
    for trial in done:
        if trial.verdict != BROKEN:
            continue
        rates = [key for key in candidate if key.rpartition(".")[2] in ("learning_rate", "lr", "zo_lr")]
        same = all(candidate[key] == trial.changes[key] for key in candidate if key not in rates)
        if rates and same and all(candidate[key] >= trial.changes[key] for key in rates):
            return True
    return False


def _gap(comparison: Comparison, record: RunRecord) -> float | None:
    """How far inside its limit a metric is, as a share of the limit; negative outside; None where it can't be told."""
    value, limit = comparison.field.of(record), comparison.bound(record)
    if value is MISSING or limit is MISSING:
        return None
    sign = 1.0 if comparison.op in ("<", "<=") else -1.0 if comparison.op in (">", ">=") else 0.0
    difference = sign * (float(limit) - float(value)) if sign else -abs(float(limit) - float(value))
    return difference / max(abs(float(limit)), 1e-9)


def _missed(comparison: Comparison, record: RunRecord) -> float:
    gap = _gap(comparison, record)
    return 1e3 if gap is None else max(-gap, 0.0)


def _overshoot(comparison: Comparison, record: RunRecord) -> float:
    gap = _gap(comparison, record)
    return 0.0 if gap is None else max(gap, 0.0)
