"""Loss landscapes: forget and retain loss on a line or a plane through a run's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from letgo.analysis.frame import Analysis, AnalysisOptions, check_seed
from letgo.analysis.neighbours import attacked_weights, original_of, other_weights, planned
from letgo.analysis.records import GridPoint, Landscape, LandscapeAxis, Mark
from letgo.analysis.weights import Normals, Weights, difference, vector_norm
from letgo.attacks.engine.target import name_of
from letgo.core.errors import UserError
from letgo.core.values import Count
from letgo.models.load import weights_fingerprint

LIMIT = 32
POINTS = {1: 25, 2: 13}
"""Odd, and such that 0 and 1 are among them in the default spans."""
SPANS = {"random": (-1.0, 1.0), "attack": (-0.5, 1.5), "model": (-0.5, 1.5)}


def landscape(
    run: str | Path,
    *,
    directions: Sequence[str] = ("random", "random"),
    points: int | None = None,
    span: tuple[float, float] | None = None,
    seed: int = 0,
    limit: Count | None = LIMIT,
    **options: Unpack[AnalysisOptions],
) -> Landscape:
    r"""Measure the forget and the retain loss at θ + a·d, or θ + a·d₁ + b·d₂, on a regular grid.

    A random direction is normal noise, each filter of it scaled to the norm of the model's own (Li et al., Visualizing
    the loss landscape of neural nets, arXiv 1712.09913, section 4): d_f ← d_f ‖θ_f‖ / ‖d_f‖. A filter is the weights
    that make one output (a row of a weight matrix; a column in GPT-2's transposed layers; a token's embedding); biases
    and norms, which have none, stay where they are. So one unit of the axis is as far for every model.

    A direction toward another model is θ_other − θ itself: at 0 lies the run, at 1 the other model. A killed analysis
    keeps its grid so far: called again with the same settings, it goes on where it was.

    Args:
        run: a run directory; or a model, with `benchmark`.
        directions: one for a line, two for a plane; each `random`; `original` (what the run began with); `attack` (the
            recorded attack that left least of the forgetting) or `attack:LABEL`, run again with its saved settings and
            its first seed; or another run or model.
        points: on each axis.
        span: from where to where on each axis; by default −1 to 1, and −0.5 to 1.5 toward another model.
        seed: of the random directions.
        limit: at most so many rows of each set; None for all.
        options: `letgo.analysis.frame.AnalysisOptions`.

    Raises:
        UserError: for a direction that is not known, leads nowhere or fits another architecture; fewer than 3 points.
    """
    if not 1 <= len(directions) <= 2:
        raise UserError(f"a landscape has one direction or two, not {len(directions)}")
    if len(set(directions)) < len(directions) and directions[0] != "random":
        raise UserError(f"both directions are {directions[0]!r}: a plane needs two different ones")
    count = POINTS[len(directions)] if points is None else points
    if count < 3:
        raise UserError(f"points must be at least 3, not {count}")
    if span is not None and not (all(map(math.isfinite, span)) and span[0] < span[1]):
        raise UserError(f"span must go from a lower to a higher number, not from {span[0]} to {span[1]}")
    check_seed(seed)
    settings = {"directions": list(directions), "points": count, "span": list(span) if span else None, "seed": seed}
    analysis = Analysis(Landscape, run, settings, limit, **options)
    weights = analysis.weights
    losses = analysis.losses(weights.model)
    axes, vectors = [], []
    for number, text in enumerate(directions):
        name, toward, vector = _direction(analysis, text, number, seed)
        coordinates = _coordinates(span or SPANS[toward], count)
        axes.append(LandscapeAxis(name=name, toward=toward, norm=vector_norm(vector), coordinates=coordinates))
        vectors.append(vector)
    cosine = _cosine(axes, vectors) if len(vectors) == 2 else None

    def measured(at: Sequence[float]) -> dict[str, float | None]:
        with weights.at(shifted(vectors, at)):
            return losses.values(weights.model)

    fingerprint = weights_fingerprint(weights.model)
    depends = {"weights": fingerprint, "norms": [axis.norm for axis in axes], "cosine": cosine}
    grid = list(product(*(axis.coordinates for axis in axes)))
    values = analysis.measure("landscape", analysis.settings | depends, grid, measured)
    return analysis.finish(
        parameters=weights.dimension,
        rows=losses.rows,
        axes=axes,
        cosine=cosine,
        points=[GridPoint(at=list(at), losses=value) for at, value in zip(grid, values, strict=True)],
        marks=_marks(analysis.target.name, axes),
    )


def _cosine(axes: Sequence[LandscapeAxis], directions: Sequence[Mapping[str, Tensor]]) -> float:
    """Of the angle between two directions, which must differ."""
    first, second = directions
    inner = math.fsum(float((first[name].double() * tensor.double()).sum()) for name, tensor in second.items())
    cosine = max(-1.0, min(1.0, inner / (axes[0].norm * axes[1].norm)))
    if 1.0 - abs(cosine) < 1e-9:
        raise UserError(f"{axes[0].name} and {axes[1].name} are the same direction: a plane needs two")
    return cosine


def shifted(directions: Sequence[Mapping[str, Tensor]], at: Sequence[float]) -> Any:
    """For `Weights.at`: θ + Σ_i a_i d_i in double precision, rounded once; exactly θ at the origin."""

    def value(name: str, original: Tensor) -> Tensor:
        if not any(at):
            return original
        moved = original.double()
        for amount, direction in zip(at, directions, strict=True):
            if amount:
                moved = moved + amount * direction[name].double()
        return moved

    return value


def filter_normalised(direction: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """Each filter of a direction scaled to the norm of the weights' own; zero where a tensor has fewer than two
    dimensions. A filter is a row, in GPT-2's transposed layers a column; of more dimensions, one index of the first."""
    from transformers.pytorch_utils import Conv1D

    columns = {f"{name}.weight" for name, module in weights.model.named_modules() if isinstance(module, Conv1D)}
    normalised = {}
    for name, weight in weights.originals.items():
        if weight.dim() < 2:
            normalised[name] = torch.zeros_like(direction[name])
            continue
        across = (0,) if name in columns else tuple(range(1, weight.dim()))
        sizes = weight.double().square().sum(across, keepdim=True).sqrt()
        given = direction[name].double()
        lengths = given.square().sum(across, keepdim=True).sqrt()
        normalised[name] = (given * torch.where(lengths > 0, sizes / lengths, 0.0)).to(direction[name].dtype)
    return normalised


def random_direction(weights: Weights, seed: int, number: int) -> dict[str, Tensor]:
    """Normal noise over all weights, filter-normalised; a function of the seed and its number alone."""
    noise = Normals(seed, number)
    return filter_normalised({name: noise.like(weight) for name, weight in weights.originals.items()}, weights)


def _direction(
    analysis: Analysis[Landscape], text: str, number: int, seed: int
) -> tuple[str, Literal["random", "attack", "model"], dict[str, Tensor]]:
    """A direction's name, what it leads to, and itself."""
    target, weights = analysis.target, analysis.weights
    kind, _, rest = text.strip().partition(":")
    if kind == "random" and not rest:
        return f"random {number + 1}", "random", random_direction(weights, seed, number)
    if kind == "attack":
        plan, recorded = planned(target, rest)
        label = recorded.label if recorded is not None else plan.label
        analysis.reporter.say(f"  running {plan.label} again, seed {plan.seeds[0]}")
        left = attacked_weights(target, weights, plan)
        return label, "attack", _toward(left, weights, f"the attack {label}", target.name)
    model = original_of(target) if text == "original" else text
    name = "original" if text == "original" else name_of(text)
    theirs = other_weights(name, model, weights, target, analysis.dtype)
    return name, "model", _toward(theirs, weights, name, target.name)


def _toward(theirs: Mapping[str, Tensor], weights: Weights, name: str, start: str) -> dict[str, Tensor]:
    direction = difference(theirs, weights.originals)
    if vector_norm(direction) == 0.0:
        raise UserError(f"{name} has the very weights of {start}: it gives no direction")
    return direction


def _coordinates(span: tuple[float, float], count: int) -> list[float]:
    """From end to end; rounded, so that 0 and 1 are exactly themselves."""
    low, high = span
    return [round(low + (high - low) * number / (count - 1), 12) + 0.0 for number in range(count)]


def _marks(subject: str, axes: Sequence[LandscapeAxis]) -> list[Mark]:
    marks = [Mark(name=subject, at=[0.0] * len(axes))]
    for number, axis in enumerate(axes):
        if axis.toward != "random" and axis.coordinates[0] <= 1.0 <= axis.coordinates[-1]:
            marks.append(Mark(name=axis.name, at=[float(number == other) for other in range(len(axes))]))
    return marks
