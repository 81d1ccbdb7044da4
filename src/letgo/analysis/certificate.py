"""Certificate: a radius of weight changes within which the smoothed model does not reveal, by randomized smoothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

from letgo.analysis.bounds import check_smoothing, draws_needed, reveals_at_most
from letgo.analysis.displacements import displacements_of, scales_of, unlearning_displacement
from letgo.analysis.frame import Analysis, check_seed
from letgo.analysis.losses import smaller_benchmark
from letgo.analysis.records import Bound, Certificate, Displacement, QuestionBound, Reach, Smoothed
from letgo.analysis.reveal import Criterion, criterion_of, utility_of
from letgo.analysis.smoothing import Scale, bound, noisy, noisy_outcomes
from letgo.analysis.wording import certified_sentences, not_certified_sentences
from letgo.benchmarks.engine.base import Sample
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.progress import Reporter, Task
from letgo.data.encode import Template
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
    limit: int | None = LIMIT,
    benchmark: str | None = None,
    template: Template | None = None,
    dtype: str = "float32",
    output: Path | None = None,
    reporter: Reporter | None = None,
) -> Certificate:
    r"""Certify, by randomized smoothing over the weights, that a model does not reveal what it has forgotten.

        smoothed chance of revealing   p(θ) = P_ε[ θ + ε reveals ],  ε ~ N(0, σ² I)
        k of N draws do not reveal:    p_lower = one-sided Clopper-Pearson bound on 1 − p(θ), at confidence 1 − alpha
        radius                         R = σ Φ⁻¹(p_lower):  p(θ + δ) < 1/2 for every δ with ‖δ‖ < R
        at any distance r              p(θ + δ) ≤ Φ(r/σ − Φ⁻¹(p_lower)),  ‖δ‖ ≤ r

    Source: Cohen et al., Certified adversarial robustness via randomized smoothing (arXiv 1902.02918), theorem 1, with
    the weights in the place of the input. What is certified is the smoothed model, which draws new noise for each
    answer; nothing follows for the model without noise. `certified` and `not_certified` of the result say so.

    Two families of statements are made, each with confidence 1 − alpha as a whole: that of the questions together, at
    alpha divided by the number of sigmas; and those of single questions, at alpha divided by sigmas and questions
    (Bonferroni).

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
        benchmark, template: what to ask; by default the run's.
        dtype: the weights' type. In a short one the noise is rounded with the weights, which is then part of the model.
        output: a directory for `analysis-certificate.json`; by default the run's own.
        reporter: where progress goes.

    Raises:
        UserError: sigma or alpha out of range, or draws too few to certify anything (how many are needed is said).
    """
    sigmas = _checked_sigmas(sigma, alpha, draws, utility_draws)
    check_seed(seed)
    settings = {
        "sigma": sigmas,
        "draws": draws,
        "alpha": alpha,
        "reveals": reveals,
        "share": share,
        "relative": relative,
        "utility_draws": utility_draws,
        "seed": seed,
    }
    analysis = Analysis(
        Certificate,
        run,
        settings=settings,
        dtype=dtype,
        limit=limit,
        benchmark=benchmark,
        template=template,
        output=output,
        reporter=reporter,
    )
    target, weights = analysis.target, analysis.weights
    criterion = criterion_of(reveals, target.benchmark, limit=limit, share=share)
    analysis.settings["reveals"] = criterion.text
    scale = scales_of(weights) if relative else None
    unlearned = unlearning_displacement(target, weights, scale, dtype)
    if sigmas is None:
        if unlearned is None or not unlearned.value:
            raise UserError("there is no unlearning to take the noise's size from: give a sigma")
        sigmas = [unlearned.value / math.sqrt(weights.dimension)]
    attacks = displacements_of(target, weights, scale, rerun=rerun)
    known = [*([unlearned] if unlearned is not None else []), *attacks]
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
    """The sigmas given, None where there are none; a `UserError` where they, alpha or the draws can certify nothing."""
    sigmas = [sigma] if isinstance(sigma, int | float) else list(sigma) if sigma is not None else None
    if sigmas is not None and (not sigmas or len(set(sigmas)) < len(sigmas)):
        raise UserError("name one sigma, or several different ones")
    for each in (*(sigmas or ()), 1.0):
        check_smoothing(each, alpha)
    if utility_draws < 1:
        raise UserError(f"utility_draws must be at least 1, not {utility_draws}: a certificate is nothing without")
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
        notes.append("the benchmark has nothing to measure utility on: of what use the smoothed model is, is not known")
    least = draws_needed(alpha / (families * len(job.plain)))
    if job.criterion.single and draws < least:
        notes.append(
            f"{draws} draws are too few for single questions: with {len(job.plain)} of them{_among(families)}, at "
            f"least {least} are needed for each to have a radius"
        )
    return notes


class _Smoothing:
    """One model, its questions, and the noise that it is put under; statements at confidence 1 − alpha for each sigma.

    Attributes:
        questions: asked of the model without noise; `plain` says which of them it reveals.
        plain_utility: its utility.
    """

    def __init__(
        self, analysis: Analysis[Certificate], criterion: Criterion, seed: int, scale: Scale | None, alpha: float
    ) -> None:
        self.analysis, self.criterion, self.seed, self.scale, self.alpha = analysis, criterion, seed, scale, alpha
        self.weights, self.model = analysis.weights, analysis.weights.model
        benchmark = analysis.target.benchmark
        trimmed = smaller_benchmark(benchmark, analysis.limit, ("retain",))
        # A benchmark whose questions are its own to choose has no items to be trimmed: its limit does that.
        self.kept = trimmed if trimmed.items or trimmed.texts or not benchmark.items else None
        self.fingerprint = weights_fingerprint(self.model)
        self.questions = criterion.samples(self.model, analysis.tokenizer, analysis.target.template)
        self.plain = criterion.of(self.questions)
        self.plain_utility = self.measured()[0]

    def smoothed(self, sigma: float, draws: int, utility_draws: int, known: Sequence[Displacement]) -> Smoothed:
        """All that is certified under one sigma, and what the smoothed model still can."""
        outcomes = self.outcomes(sigma, draws)
        with self.analysis.reporter.task("utility under noise", utility_draws) as task:
            utility, measured = self.measured((sigma, utility_draws), task)
        together = bound(sum(o is not None and self.criterion.together(o) for o in outcomes), draws, sigma, self.alpha)
        return Smoothed(
            sigma=sigma,
            noise_norm=sigma * math.sqrt(self.weights.dimension),
            together=together,
            questions=self.each(outcomes, sigma),
            reach=_reach(known, sigma, together),
            utility=utility,
            utility_draws=measured,
            broken=sum(outcome is None for outcome in outcomes),
            collapsed=_collapsed(self.plain_utility, utility),
        )

    def outcomes(self, sigma: float, draws: int) -> list[list[bool] | None]:
        """Which questions are revealed under each draw; those of a killed analysis, whatever its number of draws, are
        taken over."""
        settings, target = self.analysis.settings, self.analysis.target
        names = ("benchmark", "template", "reveals", "relative", "seed", "limit", "dtype")
        depends = {name: settings[name] for name in names} | {"sigma": sigma, "weights": self.fingerprint}
        with self.analysis.log(depends) as log, self.analysis.reporter.task(f"noise of {sigma:.3g}", draws) as task:
            return noisy_outcomes(
                self.weights,
                lambda: self.criterion.outcomes(self.model, self.analysis.tokenizer, target.template),
                sigma=sigma,
                draws=draws,
                seed=self.seed,
                scale=self.scale,
                log=log,
                task=task,
            )

    def measured(self, noise: tuple[float, int] | None = None, task: Task | None = None) -> tuple[Metrics, int]:
        """What the first draws' models still can, over all their samples together, and of how many draws it is;
        without noise, by default."""
        if self.kept is None:
            return {}, 0
        samples: list[Sample] = []
        sigma, draws = noise or (0.0, 1)
        measured, limit, template = 0, self.analysis.limit, self.analysis.target.template
        for number in range(draws):
            moved = self.weights.at(noisy(sigma, self.seed, number, self.scale)) if sigma else contextlib.nullcontext()
            with moved, contextlib.suppress(NonFiniteLossError):
                samples += self.kept.samples(self.model, self.analysis.tokenizer, limit=limit, template=template)
                measured += 1
            if task is not None:
                task.advance()
        return (utility_of(samples, self.kept) if samples else {}), measured

    def each(self, outcomes: Sequence[list[bool] | None], sigma: float) -> list[QuestionBound]:
        """Each question by itself, at its share of alpha."""
        if not self.criterion.single:
            return []
        alpha = self.alpha / len(self.questions)
        return [
            QuestionBound(
                id=sample.id,
                question=sample.question or sample.id,
                plain=self.plain[place],
                bound=bound(sum(o is not None and o[place] for o in outcomes), len(outcomes), sigma, alpha),
            )
            for place, sample in enumerate(self.questions)
        ]


def _collapsed(plain: Metrics, utility: Metrics) -> list[str]:
    if plain and not utility:
        return ["it gives no finite scores"]
    return collapse_reasons(plain, utility)


def _reach(known: Sequence[Displacement], sigma: float, found: Bound) -> list[Reach]:
    return [
        Reach(
            name=one.name,
            displacement=one.value,
            inside=one.value < found.radius,
            reveals_at_most=reveals_at_most(one.value, sigma, found.p_lower),
        )
        for one in known
        if one.value is not None
    ]


def _among(families: int) -> str:
    return f" shared by {families} sigmas" if families > 1 else ""
