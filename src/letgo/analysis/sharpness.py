"""Sharpness: how fast the losses change when the weights do, at worst, on average, and in curvature."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from letgo.analysis.frame import Analysis, AnalysisOptions, check_seed
from letgo.analysis.losses import LossTerm, gradient
from letgo.analysis.neighbours import original_of, other_weights
from letgo.analysis.records import MeanEstimate, Radius, Sharpness
from letgo.analysis.smoothing import noisy
from letgo.analysis.weights import Normals, Weights, distance, vector_norm
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.values import Count

LIMIT = 32
SHARES_OF_UNLEARNING = (0.25, 0.5, 1.0)
SHARES_OF_WEIGHTS = (0.003, 0.01, 0.03)


def sharpness(
    run: str | Path,
    *,
    radii: Sequence[float] | None = None,
    relative: bool = False,
    steps: int = 5,
    draws: int = 10,
    trace_draws: int = 10,
    seed: int = 0,
    limit: Count | None = LIMIT,
    **options: Unpack[AnalysisOptions],
) -> Sharpness:
    r"""Measure how the forget and the retain loss change around a run's weights.

        worst case   rise = max_{‖ε‖≤ρ} ℓ(θ+ε) − ℓ(θ),  fall = ℓ(θ) − min_{‖ε‖≤ρ} ℓ(θ+ε)
        average      E ℓ(θ+ε) − ℓ(θ),  ε ~ N(0, ρ²/d · I), so that E‖ε‖² = ρ²;  about ρ²/(2d) · tr H for small ρ
        curvature    tr H = E u^T H u,  u random signs (Hutchinson)

    `steps` normalised gradient steps, projected onto the ball, search for the worst case: the first is SAM's own
    ε = ρ ∇ℓ/‖∇ℓ‖ (Foret et al., arXiv 2010.01412, equation 2), the others as in Madry et al. (arXiv 1706.06083). The
    result is a lower bound of the worst. The fall of the forget loss is what an attacker who has the forget set gains
    with a change of that size.

    Averages are over pairs ε, −ε, which cancel the gradient. The trace needs a double backward pass, and so eager
    attention.

    Args:
        run: a run directory; or a model, with `benchmark`.
        radii: each ρ > 0; by default a quarter, a half and the whole of ‖θ_u − θ_o‖, the change that unlearning made
            (of a model that is no run, 0.3, 1 and 3 % of ‖θ‖).
        relative: radii are shares of ‖θ‖.
        steps: of the ascent; 1 is SAM's.
        draws: pairs of the average.
        trace_draws: sign vectors of the trace; 0 for no trace.
        seed: of all noise.
        limit: at most so many rows of each set; None for all.
        options: `letgo.analysis.frame.AnalysisOptions`.

    Raises:
        UserError: for numbers out of range.
        NonFiniteLossError: the run's own loss is not finite, or that within a radius.
    """
    given = {name: value for name, value in locals().items() if name not in ("run", "limit", "options")}
    if steps < 1 or draws < 1 or trace_draws < 0:
        raise UserError(
            f"steps and draws must be at least 1 and trace_draws at least 0, not {steps}, {draws} and {trace_draws}"
        )
    for radius in radii or ():
        if not (math.isfinite(radius) and radius > 0):
            raise UserError(f"a radius must be above 0, not {radius}")
    check_seed(seed)
    listed = None if radii is None else list(radii)
    analysis = Analysis(Sharpness, run, given | {"radii": listed}, limit, **options)
    weights = analysis.weights
    model: Any = weights.model
    norm, losses = weights.norm(), analysis.losses(model)
    if radii is None:
        absolute = _default_radii(analysis, norm)
    else:
        absolute = sorted(radius * norm if relative else radius for radius in radii)
    values = losses.values(model)
    base = {key: _finite(value, f"{analysis.target.name}: its {key}") for key, value in values.items()}
    measured: list[Radius] = []
    # What was found in a smaller ball lies in every larger one too.
    rise, fall = dict.fromkeys(base, 0.0), dict.fromkeys(base, 0.0)
    average, trace = {}, {}
    with analysis.reporter.task("sharpness", len(absolute) * len(base) * 3 + trace_draws * len(base)) as task:
        for radius in absolute:
            for key in base:
                terms = losses.terms(model, key)
                rise[key] = max(worst_case(weights, terms, radius, steps=steps, seed=seed) - base[key], rise[key])
                task.advance()
                lowest = worst_case(weights, terms, radius, steps=steps, seed=seed, sign=-1.0)
                fall[key] = max(base[key] - lowest, fall[key])
                task.advance()
                average[key] = average_case(weights, terms, radius, base[key], draws=draws, seed=seed)
                task.advance()
            share = radius / norm if norm else 0.0
            measured.append(Radius(radius=radius, relative=share, rise=rise, fall=fall, average=average))
        if trace_draws and hasattr(model, "set_attn_implementation"):
            model.set_attn_implementation("eager")
        for key in base if trace_draws else ():
            curvatures = []
            for number in range(trace_draws):
                terms = losses.terms(model, key)
                curvatures.append(curvature_along_signs(weights, terms, seed=seed, number=number))
                task.advance()
            trace[key] = estimate(curvatures)
    return analysis.finish(
        parameters=weights.dimension, rows=losses.rows, norm=norm, base=base, radii=measured, trace=trace
    )


def _default_radii(analysis: Analysis[Sharpness], norm: float) -> list[float]:
    """Shares of what unlearning moved; of the weights' norm where nothing was unlearned."""
    target, weights, apart = analysis.target, analysis.weights, 0.0
    if target.run:
        theirs = other_weights("original", original_of(target), weights, target, analysis.dtype)
        apart = distance(theirs, weights.originals)
    shares = SHARES_OF_UNLEARNING if apart else SHARES_OF_WEIGHTS
    return [share * (apart or norm) for share in shares]


def worst_case(
    weights: Weights, terms: Sequence[LossTerm], radius: float, *, steps: int, seed: int = 0, sign: float = 1.0
) -> float:
    """The highest loss (with sign −1 the lowest) that `steps` steps of projected ascent find in a ball.

    The loss at every point on the way counts, the centre's too. Where the gradient is zero, as at an exact minimum, a
    random direction is taken instead.
    """
    parameters = list(weights.parameters.values())
    eps: dict[str, Tensor] = {}
    slope: list[Tensor] = []
    best = -math.inf
    for step in range(steps + 1):
        with weights.at(partial(_added, eps)):
            if step == steps:
                with torch.no_grad():
                    value = math.fsum(float(term()) for term in terms)
            else:
                value, slope = gradient(terms, parameters)
        best = max(best, sign * _finite(value, f"a loss within the radius {radius:.3g}"))
        if step == steps:
            break
        uphill = {name: sign * _wide(g) for name, g in zip(weights.parameters, slope, strict=True)}
        size = vector_norm(uphill)
        if size == 0.0:
            noise = Normals(seed, step)
            uphill = {name: noise.like(original) for name, original in weights.originals.items()}
            size = vector_norm(uphill)
        # The first step goes to the border, as SAM's does; the later ones walk along it.
        length = radius if step == 0 else 2.5 * radius / steps
        eps = {name: (eps[name] if eps else 0.0) + g * (length / size) for name, g in uphill.items()}
        outside = vector_norm(eps) / radius
        if outside > 1.0:
            eps = {name: e / outside for name, e in eps.items()}
    return sign * best


def average_case(
    weights: Weights, terms: Sequence[LossTerm], radius: float, base: float, *, draws: int, seed: int = 0
) -> MeanEstimate:
    """E ℓ(θ+ε) − ℓ(θ) under ε ~ N(0, ρ²/d · I), over pairs ε, −ε."""
    per_coordinate = radius / math.sqrt(weights.dimension)
    changes = []
    for number in range(draws):
        pair = []
        for side in (per_coordinate, -per_coordinate):
            with weights.at(noisy(side, seed, number)), torch.no_grad():
                pair.append(_finite(math.fsum(float(term()) for term in terms), f"a loss at radius {radius:.3g}"))
        changes.append(sum(pair) / 2 - base)
    return estimate(changes)


def curvature_along_signs(weights: Weights, terms: Sequence[LossTerm], *, seed: int, number: int) -> float:
    """u^T H u for a vector u of random signs; its mean over u is the Hessian's trace (Hutchinson).

    A model without double backward is a `UserError`.
    """
    noise = Normals(seed, number)
    parameters = list(weights.parameters.values())
    signs = [torch.where(noise.like(w) >= 0, 1.0, -1.0).to(w.dtype) for w in weights.originals.values()]
    total = 0.0
    for term in terms:
        try:
            slopes = torch.autograd.grad(term(), parameters, create_graph=True, allow_unused=True)
            along = torch.stack([(g * u).sum() for g, u in zip(slopes, signs, strict=True) if g is not None]).sum()
            if not along.requires_grad:
                continue  # a linear term has no curvature
            second = torch.autograd.grad(along, parameters, allow_unused=True)
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise
            message = f"this model has no double backward pass, so no trace: give trace_draws 0\n  ({error})"
            raise UserError(message) from error
        total += math.fsum(
            float((h.double() * u.double()).sum()) for h, u in zip(second, signs, strict=True) if h is not None
        )
    return total


def _added(eps: Mapping[str, Tensor], name: str, original: Tensor) -> Tensor:
    return original + eps[name] if eps else original


def estimate(values: Sequence[float]) -> MeanEstimate:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return MeanEstimate(value=math.fsum(values) / len(values), standard_error=error, n=len(values))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _finite(value: float | None, what: str) -> float:
    if value is None or not math.isfinite(value):
        raise NonFiniteLossError(f"{what} is not finite")
    return value
