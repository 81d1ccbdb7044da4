"""Certificate: a radius of weight changes within which the smoothed model does not reveal, by randomized smoothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from letgo.analysis.frame import Analysis, AnalysisOptions, check_seed
from letgo.analysis.losses import smaller_benchmark
from letgo.analysis.neighbours import displacements_of, scales_of, unlearning_displacement
from letgo.analysis.records import Bound, Certificate, Displacement, QuestionBound, Reach, Smoothed
from letgo.analysis.reveal import Criterion, criterion_of
from letgo.analysis.smoothing import Scale, bound, check_smoothing, draws_needed, noisy, noisy_outcome, reveals_at_most
from letgo.analysis.wording import certified_sentences, not_certified_sentences
from letgo.benchmarks.engine.base import Sample
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.values import Count
from letgo.metrics.robustness import collapse_reasons
from letgo.models.load import weights_fingerprint
from letgo.runs.results import Metrics

LIMIT = 20


def certificate(
    run: str | Path,
    *,
    sigma: float | Sequence[float] | None = None,
    draws: int = 200,
    alpha: float = 0.01,
    reveals: str = "auto",
    share: float = 0.5,
    relative: bool = False,
    utility_draws: int = 5,
    rerun: bool = True,
    seed: int = 0,
    limit: Count | None = LIMIT,
    **options: Unpack[AnalysisOptions],
) -> Certificate:
    r"""Certify, by randomized smoothing over the weights, that a model does not reveal what it has forgotten.

        smoothed chance of revealing   p(θ) = P_ε[ θ + ε reveals ],  ε ~ N(0, σ² I)
        k of N draws do not reveal:    p_lower = one-sided Clopper-Pearson bound on 1 − p(θ), at confidence 1 − alpha
        radius                         R = σ Φ⁻¹(p_lower):  p(θ + δ) < 1/2 for every δ with ‖δ‖ < R
        at any distance r              p(θ + δ) ≤ Φ(r/σ − Φ⁻¹(p_lower)),  ‖δ‖ ≤ r

    Source: Cohen et al., Certified adversarial robustness via randomized smoothing (arXiv 1902.02918), theorem 1, with
    weights as the input. The certificate is of the smoothed model, which draws new noise for each answer; nothing
    follows for the model without noise. `certified` and `not_certified` of the result say so.

    There are two families of statements, each with confidence 1 − alpha as a whole: on the questions together, at alpha
    divided by the number of sigmas; and on single questions, at alpha divided by sigmas and questions (Bonferroni).

    Args:
        run: a run directory; or a model, with `benchmark` and `sigma`.
        sigma: of the noise, for each weight alike; or several, each tried. By default ‖θ_u − θ_o‖/√d, so that the
            noise is as large as the change that unlearning made.
        draws: N, at each sigma.
        alpha: 1 − confidence.
        reveals: `choice`, `greedy`, `SCORE>=T`, `forget_METRIC>=T`, or `auto` (see `letgo.analysis.reveal.Criterion`).
        share: of the questions, that must be revealed for the set to count as revealed.
        relative: the noise of each weight tensor is sigma times the root mean square of its weights. Then R bounds
            (Σ_l ‖δ_l‖²/s_l²)^½ with s_l those root mean squares (fixed at this run's weights), not ‖δ‖, and so are all
            displacements measured.
        utility_draws: draws of which the utility is measured too.
        rerun: run the recorded attacks again whose displacement is not in the record.
        seed: of the noise.
        limit: at most so many questions of the forget set, evenly spaced, and of what utility is measured on.
        options: `letgo.analysis.frame.AnalysisOptions`.

    Raises:
        UserError: sigma or alpha out of range, or draws too few to certify anything (how many are needed is said).
    """
    given = {name: value for name, value in locals().items() if name not in ("run", "rerun", "limit", "options")}
    sigmas = _checked_sigmas(sigma, alpha, draws, utility_draws)
    check_seed(seed)
    analysis = Analysis(Certificate, run, given | {"sigma": sigmas}, limit, **options)
    target, weights = analysis.target, analysis.weights
    criterion = criterion_of(reveals, target.benchmark, limit=limit, share=share)
    analysis.settings["reveals"] = criterion.text
    scale = scales_of(weights) if relative else None
    unlearned = unlearning_displacement(target, weights, scale, analysis.dtype)
    if sigmas is None:
        if unlearned is None or not unlearned.value:
            raise UserError("there is no unlearning to take the noise's size from: give a sigma")
        sigmas = [unlearned.value / math.sqrt(weights.dimension)]
    known = displacements_of(target, weights, scale, rerun=rerun)
    if unlearned is not None:
        known = [unlearned, *known]
    job = _Smoothing(analysis, criterion, seed, scale, alpha / len(sigmas))
    smoothed = [job.smoothed(each, draws, min(utility_draws, draws), known) for each in sigmas]
    count, revealed = len(job.questions), sum(job.plain)
    return analysis.finish(
        parameters=weights.dimension,
        criterion=criterion.in_words(),
        event=criterion.event(count),
        asked=count,
        plain_revealed=revealed,
        alpha=alpha,
        relative=relative,
        plain_utility=job.plain_utility,
        smoothed=smoothed,
        displacements=known,
        certified=certified_sentences(criterion, count, smoothed, alpha, relative),
        not_certified=not_certified_sentences(criterion, count, smoothed, known, relative),
        notes=_notes(job, draws, alpha, len(sigmas)),
    )


def _checked_sigmas(
    sigma: float | Sequence[float] | None, alpha: float, draws: int, utility_draws: int
) -> list[float] | None:
    """The sigmas given, if any; a `UserError` where they, alpha or the draws can certify nothing."""
    sigmas = [sigma] if isinstance(sigma, int | float) else list(sigma) if sigma is not None else None
    if sigmas is not None and (not sigmas or len(set(sigmas)) < len(sigmas)):
        raise UserError("name one sigma, or several different ones")
    for each in (*(sigmas or ()), 1.0):
        check_smoothing(each, alpha)
    if utility_draws < 1:
        raise UserError(f"utility_draws must be at least 1, not {utility_draws}: a certificate needs the utility")
    families = len(sigmas) if sigmas is not None else 1
    needed = draws_needed(alpha / families)
    if draws < needed:
        raise UserError(
            f"{draws} draws can certify nothing at alpha {alpha:g}{_among(families)}: even if none of them reveals, "
            f"the bound is {(alpha / families) ** (1 / max(draws, 1)):.3f}, not above 1/2\n"
            f"  at least {needed} draws are needed, and many more for a radius of more than a little"
        )
    return sigmas


def _notes(job: _Smoothing, draws: int, alpha: float, families: int) -> list[str]:
    notes = []
    if not job.plain_utility:
        notes.append(
            "the benchmark has nothing to measure utility on: nobody knows what the smoothed model is good for"
        )
    least = draws_needed(alpha / (families * len(job.plain)))
    if job.criterion.single and draws < least:
        notes.append(
            f"{draws} draws are too few for single questions: with {len(job.plain)} of them{_among(families)}, at "
            f"least {least} are needed for each to have a radius"
        )
    return notes


class _Smoothing:
    """One model, its questions, and the noise on its weights; statements at confidence 1 − alpha for each sigma.

    Attributes:
        questions: asked of the model without noise; `plain` says which of them it reveals.
        plain_utility: the utility of the model without noise.
    """

    def __init__(
        self, analysis: Analysis[Certificate], criterion: Criterion, seed: int, scale: Scale | None, alpha: float
    ) -> None:
        self.analysis, self.criterion, self.seed, self.scale, self.alpha = analysis, criterion, seed, scale, alpha
        self.weights, self.model, self.template = analysis.weights, analysis.weights.model, analysis.target.template
        benchmark = analysis.target.benchmark
        trimmed = smaller_benchmark(benchmark, analysis.limit, ("retain",))
        # A benchmark whose questions are its own to choose has no items to be trimmed: its limit does that.
        self.kept = trimmed if trimmed.items or trimmed.texts or not benchmark.items else None
        self.fingerprint = weights_fingerprint(self.model)
        self.questions = criterion.samples(self.model, analysis.tokenizer, self.template)
        self.plain = criterion.of(self.questions)
        self.plain_utility, _ = self.utility(0.0, 1)

    def smoothed(self, sigma: float, draws: int, utility_draws: int, known: Sequence[Displacement]) -> Smoothed:
        """All that is certified under one sigma, and the utility that the smoothed model keeps."""
        outcomes = self.outcomes(sigma, draws)
        utility, measured = self.utility(sigma, utility_draws)
        together = bound(sum(o is not None and self.criterion.together(o) for o in outcomes), draws, sigma, self.alpha)
        broken = ["it gives no finite scores"] if self.plain_utility and not utility else None
        return Smoothed(
            sigma=sigma,
            noise_norm=sigma * math.sqrt(self.weights.dimension),
            together=together,
            questions=self.question_bounds(outcomes, sigma) if self.criterion.single else [],
            reach=_reach(known, sigma, together),
            utility=utility,
            utility_draws=measured,
            broken=sum(outcome is None for outcome in outcomes),
            collapsed=broken or collapse_reasons(self.plain_utility, utility),
        )

    def outcomes(self, sigma: float, draws: int) -> list[list[bool] | None]:
        """Which questions are revealed under each draw. A killed analysis leaves its draws to the next one, which may
        ask for another number of them."""
        names = ("benchmark", "template", "reveals", "relative", "seed", "limit", "dtype")
        depends = {name: self.analysis.settings[name] for name in names}
        depends |= {"sigma": sigma, "weights": self.fingerprint}
        judge = partial(self.criterion.outcomes, self.model, self.analysis.tokenizer, self.template)
        outcome = partial(noisy_outcome, self.weights, judge, sigma, self.seed, scale=self.scale)
        return self.analysis.measure(f"noise of {sigma:.3g}", depends, range(draws), outcome)

    def utility(self, sigma: float, draws: int) -> tuple[Metrics, int]:
        """The utility under the first draws, over all their samples together, and how many of them gave finite scores.
        Sigma 0 means no noise."""
        if self.kept is None:
            return {}, 0
        samples: list[Sample] = []
        measured, limit, tokenizer = 0, self.analysis.limit, self.analysis.tokenizer
        with self.analysis.reporter.task("utility under noise" if sigma else "utility", draws) as task:
            for number in range(draws):
                noise = noisy(sigma, self.seed, number, self.scale)
                moved = self.weights.at(noise) if sigma else contextlib.nullcontext()
                with moved, contextlib.suppress(NonFiniteLossError):
                    samples += self.kept.samples(self.model, tokenizer, limit=limit, template=self.template)
                    measured += 1
                task.advance()
        metrics = self.kept.summarise(samples) if samples else {}
        return {name: metric for name, metric in metrics.items() if not name.startswith("forget_")}, measured

    def question_bounds(self, outcomes: Sequence[list[bool] | None], sigma: float) -> list[QuestionBound]:
        """A bound for each single question, at its share of alpha."""
        alpha, bounds = self.alpha / len(self.questions), []
        for number, (sample, plain) in enumerate(zip(self.questions, self.plain, strict=True)):
            revealed = sum(outcome is not None and outcome[number] for outcome in outcomes)
            proven = bound(revealed, len(outcomes), sigma, alpha)
            question = sample.question or sample.id
            bounds.append(QuestionBound(id=sample.id, question=question, plain=plain, bound=proven))
        return bounds


def _reach(known: Sequence[Displacement], sigma: float, together: Bound) -> list[Reach]:
    reach = []
    for name, value in ((displacement.name, displacement.value) for displacement in known):
        if value is not None:
            most = reveals_at_most(value, sigma, together.p_lower)
            reach.append(Reach(name=name, displacement=value, inside=value < together.radius, reveals_at_most=most))
    return reach


def _among(families: int) -> str:
    return f" shared by {families} sigmas" if families > 1 else ""
