"""Linear mode connectivity: does the straight line between two models stay low, or is there a barrier on it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from letgo.analysis.frame import Analysis, AnalysisOptions
from letgo.analysis.losses import RowLosses, smaller_benchmark
from letgo.analysis.neighbours import check_tokenizers
from letgo.analysis.records import Barrier, Connectivity, LinearPath, PathPoint
from letgo.analysis.weights import Weights, check_same_shape, distance, named_weights
from letgo.benchmarks.engine.base import Benchmark
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.values import Count
from letgo.models.load import weights_fingerprint

LIMIT = 32


def connectivity(
    models: Sequence[str | Path],
    *,
    points: int = 11,
    metrics: bool = True,
    limit: Count | None = LIMIT,
    **options: Unpack[AnalysisOptions],
) -> Connectivity:
    r"""Measure models on the straight line between each two of some models, in the order given.

        θ(a) = (1 − a) θ_A + a θ_B,  a = 0, 1/(points−1), …, 1
        barrier of a loss ℓ:  B(A, B) = max_a [ ℓ(θ(a)) − ((1 − a) ℓ(θ_A) + a ℓ(θ_B)) ]

    Source: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis (arXiv 1912.05671); the barrier
    against the line between the two ends (not their mean) as in Entezari et al. (arXiv 2110.06296). A barrier near 0
    says that both models lie in one basin. A lower metric is not always worse: so the result has the largest rise over
    the line and the largest fall under it.

    Args:
        models: two or more run directories or models of one architecture and tokenizer: full, sharded, or with
            adapters (which are merged).
        points: on each line, both ends among them.
        metrics: measure the benchmark's metrics too, not the losses alone.
        limit: at most so many rows for losses, and items and texts for metrics, of each set; None for all.
        options: `letgo.analysis.frame.AnalysisOptions`.

    Raises:
        UserError: fewer than two models, other architectures or tokenizers, nothing to measure on, points < 3.
    """
    if len(models) < 2:
        raise UserError("connectivity needs two models or more")
    if points < 3:
        raise UserError(f"points must be at least 3 (both ends and what lies between), not {points}")
    analysis = Analysis(Connectivity, list(models), {"points": points, "metrics": metrics}, limit, **options)
    targets = analysis.targets
    check_tokenizers({target.name: target.tokenizer() for target in targets})
    smaller = smaller_benchmark(analysis.target.benchmark, limit) if metrics else None
    alphas = [number / (points - 1) for number in range(points)]
    paths: list[LinearPath] = []
    ends: dict[str, dict[str, Any]] = {}
    losses: RowLosses | None = None
    for first, second in combinations(targets, 2):
        model, other = (target.load(analysis.dtype) for target in (first, second))
        weights, theirs = Weights(model), named_weights(other)
        check_same_shape(weights.originals, theirs, (first.name, second.name))
        losses = losses or analysis.losses(model)
        names = {0.0: first.name, 1.0: second.name}
        measure = partial(_measured, analysis, weights, theirs, losses, smaller, names, ends)
        depends = {"weights": [weights_fingerprint(m) for m in (model, other)]}
        line = analysis.measure(f"{first.name} → {second.name}", analysis.settings | depends, alphas, measure)
        ends |= {first.name: line[0], second.name: line[-1]}
        paths.append(_path(names, alphas, line, distance(theirs, weights.originals), weights.norm()))
    assert losses is not None  # there is at least one pair
    return analysis.finish(
        models=[target.name for target in targets], parameters=weights.dimension, rows=losses.rows, paths=paths
    )


def mixture(theirs: Mapping[str, Tensor], alpha: float) -> Any:
    """For `Weights.at`: (1 − a) θ_A + a θ_B in double precision, rounded once; exactly the ends at 0 and 1."""

    def value(name: str, original: Tensor) -> Tensor:
        if alpha in (0.0, 1.0):
            return theirs[name].to(original.device) if alpha else original
        return torch.lerp(original.double(), theirs[name].to(original.device).double(), alpha)

    return value


def barrier(alphas: Sequence[float], values: Sequence[float]) -> Barrier:
    """The largest rise of finite values, at alphas from 0 to 1, over the line between the first and the last, the
    largest fall under it, and where."""
    first, last = values[0], values[-1]
    above = [value - ((1 - a) * first + a * last) for a, value in zip(alphas, values, strict=True)]
    # By definition the ends are on the line; rounding may say otherwise.
    above[0] = above[-1] = 0.0
    top, bottom = max(above), min(above)
    return Barrier(rise=top, rise_at=alphas[above.index(top)], fall=0.0 - bottom, fall_at=alphas[above.index(bottom)])


def _measured(
    analysis: Analysis[Connectivity],
    weights: Weights,
    theirs: Mapping[str, Tensor],
    losses: RowLosses,
    smaller: Benchmark | None,
    names: Mapping[float, str],
    ends: Mapping[str, dict[str, Any]],
    alpha: float,
) -> dict[str, Any] | None:
    """Losses and metrics at one point of the line, as JSON values; None where they are not finite. `ends` has those of
    the models that ended an earlier line."""
    name = names.get(alpha)
    if name is not None and name in ends:
        return ends[name]
    model, template = weights.model, analysis.target.template
    with weights.at(mixture(theirs, alpha)):
        try:
            metrics = losses.metrics(model)
            if smaller is not None:
                # The limit once more, for a benchmark whose questions are its own to choose.
                samples = smaller.samples(model, analysis.tokenizer, limit=analysis.limit, template=template)
                metrics |= smaller.summarise(samples)
        except NonFiniteLossError as error:
            if name is None:
                return None
            raise NonFiniteLossError(f"{name} gives no finite scores; its weights are broken") from error
    return {key: metric.model_dump() for key, metric in metrics.items()}


def _path(
    names: Mapping[float, str], alphas: Sequence[float], values: Sequence[Any], apart: float, size: float
) -> LinearPath:
    line = list(zip(alphas, values, strict=True))
    points = [PathPoint(alpha=a, values=v) for a, v in line if v is not None]
    shared = [key for key in points[0].values if all(key in point.values for point in points)]
    measured = [point.alpha for point in points]
    return LinearPath(
        first=names[0.0],
        second=names[1.0],
        distance=apart,
        relative_distance=apart / size if size else 0.0,
        points=points,
        barriers={key: barrier(measured, [point.values[key].value for point in points]) for key in shared},
        lost=[a for a, v in line if v is None],
    )
