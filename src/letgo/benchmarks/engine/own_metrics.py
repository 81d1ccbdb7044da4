"""A user's own metrics: a score of each sample, whatever benchmark made it, and its mean over each set.

def answer_words(sample, *, at_least: int = 1) -> float | None:
    words = len(sample.generated.split())
    return float(words) if words >= at_least else None
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from letgo.benchmarks.engine.items import Sample
from letgo.benchmarks.engine.questions import of_set
from letgo.benchmarks.engine.requests import Advance, Answers, ScoredQueries, Work
from letgo.core.catalog import parse_spec
from letgo.core.errors import LetgoError, NonFiniteLossError, UserError, first_line
from letgo.core.values import shown
from letgo.metrics import METRICS
from letgo.metrics.summary import mean_metric
from letgo.runs.results import Metrics


@dataclass(frozen=True)
class OwnMetric:
    """A function of a sample and settings, which gives a number, or None where it says nothing of that sample.

    Attributes:
        name: the function's: its mean over the forget set is `forget_NAME`.
        bounds: the least and the largest value; None where nobody has said.
    """

    name: str
    function: Any
    settings: Mapping[str, Any]
    bounds: tuple[float, float] | None

    def of(self, sample: Sample) -> float | None:
        try:
            value = self.function(sample, **self.settings)
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise LetgoError(f"metric {self.name!r} fails on sample {sample.id!r}: {what}") from error
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"metric {self.name!r} gives {shown(value)} for a sample; it must give a number or None")
        if value is not None and not math.isfinite(value):
            raise NonFiniteLossError(f"metric {self.name!r} came out as {value} for sample {sample.id!r}")
        return None if value is None else float(value)


def own_metrics(specs: Sequence[str]) -> tuple[OwnMetric, ...]:
    """The metrics of specs "package.module.name:key=value,…".

    Raises:
        UserError: a path, a name or a setting that can't be used; two metrics of one name.
    """
    metrics: dict[str, OwnMetric] = {}
    for spec in specs:
        path, settings = parse_spec(spec)
        if path in METRICS:
            raise UserError(
                f"metric {path!r} is letgo's: a benchmark takes it where it has what it takes; `metrics` names your own"
            )
        record = METRICS.record(path)
        METRICS.check_settings(path, settings, skip=("sample",))
        name = path.rpartition(".")[2]
        if name in METRICS or name in metrics:
            raise UserError(f"metric {path!r}: there is another metric {name!r}; call the function otherwise")
        bounds = None if record.ceiling is None else (0.0, record.ceiling)
        metrics[name] = OwnMetric(name, METRICS.load(path), settings, bounds)
    return tuple(metrics.values())


def with_metrics(work: Work, metrics: Sequence[OwnMetric]) -> Work:
    """The work with each metric's score on each sample that it makes."""
    if not metrics:
        return work

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        samples = []
        for sample in work.finish(scored, answers, advance):
            given = {metric.name: metric.of(sample) for metric in metrics}
            if taken := [name for name in given if name in sample.scores]:
                raise UserError(f"metric {taken[0]!r}: the benchmark has a score of that name; call yours otherwise")
            more = {name: value for name, value in given.items() if value is not None}
            samples.append(replace(sample, scores={**sample.scores, **more}))
        return samples

    return replace(work, finish=finish, parts=())


def metrics_over_sets(samples: Sequence[Sample], metrics: Sequence[OwnMetric]) -> Metrics:
    """`SET_NAME`: the mean of each metric over the samples of each set that it says something of."""
    found: Metrics = {}
    for name in dict.fromkeys(sample.set for sample in samples):
        for metric in metrics:
            rated = [sample for sample in of_set(samples, name) if metric.name in sample.scores]
            if rated:
                values, groups = [s.scores[metric.name] for s in rated], [s.group for s in rated]
                found[f"{name}_{metric.name}"] = mean_metric(values, groups, metric.bounds)
    return found
