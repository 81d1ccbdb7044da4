"""Loss landscapes: forget and retain loss on a line or a plane through a run's weights."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.analysis.ledger import Ledger
from letgo.analysis.losses import RowLosses
from letgo.analysis.records import Axis, GridPoint, Landscape, Mark, write_analysis
from letgo.analysis.subject import (
    Subject,
    attacked_weights,
    check_seed,
    data_of,
    made,
    original_of,
    other_weights,
    planned,
    subject_of,
    subjects_of,
    target_of,
)
from letgo.analysis.weights import Normals, Weights, difference, inner, vector_norm
from letgo.benchmarks.engine.base import Benchmark
from letgo.core.errors import UserError
from letgo.core.progress import Quiet, Reporter
from letgo.data.encode import Template
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
    limit: int | None = LIMIT,
    benchmark: str | None = None,
    template: Template | None = None,
    dtype: str = "float32",
    output: Path | None = None,
    reporter: Reporter | None = None,
) -> Landscape:
    r"""Measure the forget and the retain loss at θ + a·d, or θ + a·d₁ + b·d₂, on a regular grid.

    A random direction is normal noise, each filter of it scaled to the norm of the model's own (Li et al., Visualizing
    the loss landscape of neural nets, arXiv 1712.09913, section 4): d_f ← d_f ‖θ_f‖ / ‖d_f‖. A filter is the weights
    that make one output (a row of a weight matrix; a column in GPT-2's transposed layers; a token's embedding); biases
    and norms, which have none, stay where they are. So one unit of the axis is as far for every model.

    A direction toward another model is θ_other − θ itself: at 0 lies the run, at 1 the other model.

    The grid is kept as it grows: a killed analysis, called again with the same settings, goes on where it was.

    Args:
        run: a run directory; or a model, with `benchmark`.
        directions: one for a line, two for a plane; each `random`; `original` (what the run began with); `attack` (the
            recorded attack that left least of the forgetting) or `attack:LABEL`, run again with its saved settings and
            its first seed; or another run or model.
        points: on each axis.
        span: from where to where on each axis; by default −1 to 1, and −0.5 to 1.5 toward another model.
        seed: of the random directions.
        limit: at most so many rows of each set; None for all.
        benchmark, template: what to measure on; by default the run's.
        dtype: the weights' type while they are moved.
        output: a directory for `analysis-landscape.json`; by default the run's own.
        reporter: where progress goes.

    Raises:
        UserError: for a direction that is not known, leads nowhere or fits another architecture; fewer than 3 points.
    """
    start, reporter = time.perf_counter(), reporter or Quiet()
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
    subject = subject_of(run, benchmark=benchmark)
    target = target_of([subject], output)
    data, form, name = data_of([subject], benchmark, template)
    tokenizer, model = subject.tokenizer(), subject.load(dtype)
    weights = Weights(model)
    losses = RowLosses(model, tokenizer, data, template=form, limit=limit)
    context = _Context(subject, weights, data, form, dtype, seed, reporter)
    made_of = [context.direction(text, number) for number, text in enumerate(directions)]
    axes = [
        Axis(name=label, toward=toward, norm=vector_norm(d), coordinates=_coordinates(span or SPANS[toward], count))
        for label, toward, d in made_of
    ]
    vectors = [d for _, _, d in made_of]
    cosine = None
    if len(vectors) == 2:
        cosine = max(-1.0, min(1.0, inner(*vectors) / (axes[0].norm * axes[1].norm)))
        if 1.0 - abs(cosine) < 1e-9:
            raise UserError(f"{axes[0].name} and {axes[1].name} are the same direction: a plane needs two")
    settings = {
        "benchmark": name,
        "template": form,
        "directions": list(directions),
        "points": count,
        "span": list(span) if span else None,
        "seed": seed,
        "limit": limit,
        "dtype": dtype,
    }
    depends = {"weights": weights_fingerprint(model), "norms": [axis.norm for axis in axes], "cosine": cosine}
    ledger = Ledger(target, "landscape", settings | depends)
    grid = []
    with reporter.task("landscape", count ** len(axes)) as task:
        for at in product(*(axis.coordinates for axis in axes)):
            found = ledger.get(at)
            if found is None:
                with weights.at(shifted(vectors, at)):
                    found = losses.values(model)
                ledger.put(at, found)
            grid.append(GridPoint(at=list(at), losses=found))
            task.advance()
    entry = Landscape(
        subject=subject.name,
        settings=settings,
        parameters=weights.dimension,
        rows=losses.rows,
        axes=axes,
        cosine=cosine,
        points=grid,
        marks=_marks(subject.name, axes),
        **made(start),
    )
    if target is not None:
        write_analysis(target, entry)
        ledger.remove()
    return entry


def shifted(directions: Sequence[Mapping[str, Tensor]], at: Sequence[float]) -> Any:
    """For `Weights.at`: θ + Σ_i a_i d_i in double precision, rounded once; exactly θ at the origin."""

    def value(name: str, own: Tensor) -> Tensor:
        if not any(at):
            return own
        moved = own.double()
        for amount, direction in zip(at, directions, strict=True):
            if amount:
                moved = moved + amount * direction[name].double()
        return moved

    return value


def filter_normalised(direction: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """Each filter of a direction scaled to the norm of the weights' own; zero where a tensor has fewer than two
    dimensions. A filter of a matrix is a row, in GPT-2's transposed layers a column; of more dimensions, what belongs
    to one index of the first."""
    columns = _transposed_layers(weights.model)
    out = {}
    for name, own in weights.originals.items():
        if own.dim() < 2:
            out[name] = torch.zeros_like(direction[name])
            continue
        across = (0,) if name in columns else tuple(range(1, own.dim()))
        sizes = own.double().square().sum(across, keepdim=True).sqrt()
        theirs = direction[name].double()
        lengths = theirs.square().sum(across, keepdim=True).sqrt()
        out[name] = (theirs * torch.where(lengths > 0, sizes / lengths, 0.0)).to(direction[name].dtype)
    return out


def random_direction(weights: Weights, seed: int, number: int) -> dict[str, Tensor]:
    """Normal noise over all weights, filter-normalised; a function of the seed and its number alone."""
    noise = Normals(seed, number)
    return filter_normalised({name: noise.like(own) for name, own in weights.originals.items()}, weights)


class _Context:
    """What directions are made from."""

    def __init__(
        self,
        subject: Subject,
        weights: Weights,
        benchmark: Benchmark,
        template: Template,
        dtype: str,
        seed: int,
        reporter: Reporter,
    ) -> None:
        self.subject, self.weights, self.dtype, self.seed = subject, weights, dtype, seed
        self.benchmark, self.template, self.reporter = benchmark, template, reporter

    def direction(self, text: str, number: int) -> tuple[str, Literal["random", "attack", "model"], dict[str, Tensor]]:
        """Its name, what it leads to, and itself."""
        kind, _, rest = text.strip().partition(":")
        if kind == "random" and not rest:
            return f"random {number + 1}", "random", random_direction(self.weights, self.seed, number)
        if kind == "attack":
            plan, recorded = planned(self.subject, rest)
            label = recorded.label if recorded is not None else plan.label
            self.reporter.say(f"  running {plan.label} again, seed {plan.seeds[0]}")
            found = attacked_weights(self.subject, self.weights, plan, self.benchmark, self.template, self.reporter)
            return label, "attack", self._toward(found, f"the attack {label}")
        place = original_of(self.subject) if text == "original" else text
        name = "original" if text == "original" else subjects_of([text])[0].name
        found = other_weights(name, place, self.weights, self.subject.name, self.dtype)
        return name, "model", self._toward(found, name)

    def _toward(self, found: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        direction = difference(found, self.weights.originals)
        if vector_norm(direction) == 0.0:
            raise UserError(f"{name} has the very weights of {self.subject.name}: it gives no direction")
        return direction


def _coordinates(span: tuple[float, float], count: int) -> list[float]:
    """From end to end; rounded, so that 0 and 1 are exactly themselves."""
    low, high = span
    return [round(low + (high - low) * number / (count - 1), 12) + 0.0 for number in range(count)]


def _marks(subject: str, axes: Sequence[Axis]) -> list[Mark]:
    marks = [Mark(name=subject, at=[0.0] * len(axes))]
    for number, axis in enumerate(axes):
        if axis.toward != "random" and axis.coordinates[0] <= 1.0 <= axis.coordinates[-1]:
            marks.append(Mark(name=axis.name, at=[float(number == other) for other in range(len(axes))]))
    return marks


def _transposed_layers(model: torch.nn.Module) -> set[str]:
    from transformers.pytorch_utils import Conv1D

    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
