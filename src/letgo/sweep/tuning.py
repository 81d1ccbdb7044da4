"""Each group's setting at matched forgetting: robustness is compared between runs that forgot equally well.

A group's candidates are run on its first seed, without attacks. One has *reached* where it did not collapse, the
`target` holds and the `bound` holds. Of those that reached, the one whose forgetting is nearest to the target is taken:
more would be forgetting that the others were not asked for. Where none did, the nearest that keeps the bound is taken,
and the group is marked as one that never reached the target.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from letgo.core.catalog import check_settings, did_you_mean
from letgo.core.errors import UserError, located
from letgo.core.search import Range, TreeSearch, combinations
from letgo.core.values import Seed, Within, shown, wanted
from letgo.runs import RunRecord
from letgo.runs.query import MISSING, Condition, RunQuery, parse_query
from letgo.runs.results import Result
from letgo.runs.sweeps import TrialState

_OPTIONS = ("target", "bound", "trials", "seed")
MEETS, MISSES, BROKEN = "reached", "missed", "collapsed"


@dataclass(frozen=True)
class Tune:
    """What is tuned: for each key, by the optimizer's name as a shell pattern, the values to try or their range."""

    values: Mapping[str, Mapping[str, Sequence[Any] | Range]]
    target: RunQuery
    bound: RunQuery | None
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

    def tried(self, optimizer: str) -> list[dict[str, Any]]:
        """Candidates to try settings with, before anything runs: the first of all, and that with each other value."""
        values = self.of(optimizer)
        ends = {key: [each.low, each.high] if isinstance(each, Range) else each for key, each in values.items()}
        first = {key: choices[0] for key, choices in ends.items()}
        return [first, *({**first, key: value} for key, choices in ends.items() for value in choices[1:])]

    def candidates(self, optimizer: str) -> int:
        """How many candidates there are for an optimizer, at most."""
        values = self.of(optimizer).values()
        if any(isinstance(choices, Range) for choices in values):
            return self.trials
        return math.prod(len(choices) for choices in values if not isinstance(choices, Range)) if values else 0

    def next(self, optimizer: str, done: Sequence[TrialState]) -> dict[str, Any] | None:
        """The candidate that comes after those done; None when there are no more.

        A grid is gone through with its numbers ascending; where a candidate collapsed, those that differ from it only
        by larger learning rates are passed over, for they would collapse too.
        """
        values = self.of(optimizer)
        if any(isinstance(choices, Range) for choices in values.values()):
            if len(done) >= self.trials:
                return None
            # Made anew from what is done, with a seed of its own for each draw: a resumed sweep draws the same.
            seed = self.seed * 10_007 + len(done)
            history = [(trial.changes, trial.distance) for trial in done]
            return TreeSearch(values, seed, self.trials, history=history, what="tuning over a range").ask()
        tried = [trial.changes for trial in done]
        for candidate in combinations({key: _ascending(choices) for key, choices in values.items()}):
            if candidate not in tried and not _hopeless(candidate, done):
                return candidate
        return None


def judge(tune: Tune, changes: Mapping[str, Any], run: str, result: Result) -> TrialState:
    """Whether a candidate's run reached target and bound, and how far it is from them: 0 on the target; larger for
    missing it, for forgetting more than asked, and most for breaking the model."""
    record = RunRecord.of(run, result)
    verdict, distance = BROKEN, 1e6
    if result.status == "finished":
        if tune.target.matches(record) and (tune.bound is None or tune.bound.matches(record)):
            verdict, distance = MEETS, sum(max(_gap(c, record) or 0.0, 0.0) for c in tune.target.comparisons)
        else:
            missed, bound_missed = _missed(tune.target, record), _missed(tune.bound, record) if tune.bound else 0.0
            verdict, distance = MISSES, 10.0 + missed + 100.0 * bound_missed
    return TrialState(changes=dict(changes), verdict=verdict, distance=distance, run=run)


def choose(trials: Sequence[TrialState]) -> TrialState:
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
    keys = [key for key in given if key not in _OPTIONS]
    if not keys:
        raise UserError(f"{where}: tune names nothing to tune, such as learning_rate: [1.0e-5, 1.0e-4]")
    values = {str(key): _by_name(where, str(key), given[key]) for key in keys}
    ranged = any(isinstance(choices, Range) for by_name in values.values() for choices in by_name.values())
    trials = given.get("trials", 0)
    if ranged and not trials:
        raise UserError(f"{where}: tune has a range, so it needs 'trials', the number of candidates to draw")
    for key in ("trials", "seed"):
        if problem := wanted(given.get(key, 0), Seed):
            raise UserError(f"{where}: tune.{key} must be {problem}, not {shown(given[key])}")
    with located(f"{where}: tune"):
        target = parse_query(str(given["target"]))
        bound = parse_query(str(given["bound"])) if given.get("bound") else None
    for query in filter(None, (target, bound)):
        if not query.comparisons or any(wanted(c.value, Annotated[float, Within()]) for c in query.comparisons):
            raise UserError(f"{where}: tune: {query.text!r} must compare a metric with a number")
    return Tune(values, target, bound, trials, given.get("seed", 0))


def _by_name(where: str, key: str, given: Any) -> dict[str, Sequence[Any] | Range]:
    if isinstance(given, dict) and not {"low", "high"} <= set(given):
        return {str(name): _choices(f"{where}: tune.{key}.{name}", choices) for name, choices in given.items()}
    return {"*": _choices(f"{where}: tune.{key}", given)}


def _choices(what: str, given: Any) -> Sequence[Any] | Range:
    if isinstance(given, list) and given:
        return given
    if not isinstance(given, dict):
        raise UserError(f"{what} must be a list of values or {{low, high}}, not {given!r}")
    try:
        check_settings(what, [Range], given)
        interval = Range(float(given["low"]), float(given["high"]), given.get("log", True))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{what} must have numbers low and high, not {given!r}") from error
    if interval.low >= interval.high or (interval.log and interval.low <= 0):
        raise UserError(f"{what}: low must be below high, and above 0 on a log scale, not {given!r}")
    return interval


def _ascending(values: Sequence[Any] | Range) -> list[Any]:
    given = list(values) if not isinstance(values, Range) else []
    return sorted(given) if all(isinstance(v, int | float) for v in given) else given


def _hopeless(candidate: Mapping[str, Any], done: Sequence[TrialState]) -> bool:
    """Whether a candidate differs from one that collapsed by larger learning rates alone."""
    for trial in done:
        if trial.verdict != BROKEN:
            continue
        rates = [key for key in candidate if key.rpartition(".")[2] in ("learning_rate", "lr", "zo_lr")]
        same = all(candidate[key] == trial.changes[key] for key in candidate if key not in rates)
        if rates and same and all(candidate[key] >= trial.changes[key] for key in rates):
            return True
    return False


def _gap(comparison: Condition, record: RunRecord) -> float | None:
    """How far inside its limit a metric is, as a share of the limit; negative outside; None where it is missing."""
    value, limit = comparison.field.of(record), comparison.bound(record)
    if value is MISSING or limit is MISSING:
        return None
    sign = 1.0 if comparison.op in ("<", "<=") else -1.0 if comparison.op in (">", ">=") else 0.0
    difference = sign * (float(limit) - float(value)) if sign else -abs(float(limit) - float(value))
    return difference / max(abs(float(limit)), 1e-9)


def _missed(query: RunQuery, record: RunRecord) -> float:
    gaps = [_gap(comparison, record) for comparison in query.comparisons]
    return sum(1e3 if gap is None else max(-gap, 0.0) for gap in gaps)
