"""Certificate: a radius of weight changes within which the smoothed model does not reveal, by randomized smoothing."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from letgo.analysis.bounds import check_smoothing, draws_needed, reveals_at_most
from letgo.analysis.displacements import displacements_of, scales_of, unlearning_displacement
from letgo.analysis.ledger import Ledger
from letgo.analysis.losses import smaller_benchmark
from letgo.analysis.records import Bound, Certificate, Displacement, QuestionBound, Reach, Smoothed, write_analysis
from letgo.analysis.reveal import Criterion, criterion_of, utility_of
from letgo.analysis.smoothing import Scale, bound, noisy, noisy_outcomes
from letgo.analysis.subject import check_seed, data_of, made, subject_of, target_of
from letgo.analysis.weights import Weights
from letgo.analysis.wording import certified_sentences, not_certified_sentences
from letgo.benchmarks.engine.base import Benchmark, Sample
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.progress import Quiet, Reporter, Task
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
    start, reporter = time.perf_counter(), reporter or Quiet()
    sigmas = [sigma] if isinstance(sigma, int | float) else list(sigma) if sigma is not None else None
    if sigmas is not None and (not sigmas or len(set(sigmas)) < len(sigmas)):
        raise UserError("name one sigma, or several different ones")
    for one in sigmas or ():
        check_smoothing(one, alpha)
    check_smoothing(1.0, alpha)
    check_seed(seed)
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
    subject = subject_of(run, benchmark=benchmark)
    target = target_of([subject], output)
    data, form, name = data_of([subject], benchmark, template)
    criterion = criterion_of(reveals, data, limit=limit, share=share)
    tokenizer, model = subject.tokenizer(), subject.load(dtype)
    weights = Weights(model)
    scale = scales_of(weights) if relative else None
    unlearned = unlearning_displacement(subject, weights, scale, dtype)
    if sigmas is None:
        if unlearned is None or not unlearned.value:
            raise UserError("there is no unlearning to take the noise's size from: give a sigma")
        sigmas = [unlearned.value / math.sqrt(weights.dimension)]
    attacks = displacements_of(subject, weights, scale, data, form, rerun=rerun, reporter=reporter)
    known = [*([unlearned] if unlearned is not None else []), *attacks]
    trimmed = smaller_benchmark(data, limit, ("retain",))
    # A benchmark whose questions are its own to choose has no items to be trimmed: its limit does that.
    kept = trimmed if trimmed.items or trimmed.texts or not data.items else None
    questions = criterion.samples(model, tokenizer, form)
    plain = criterion.of(questions)
    settings = {
        "benchmark": name,
        "template": form,
        "sigma": sigmas if sigma is not None else None,
        "draws": draws,
        "alpha": alpha,
        "reveals": criterion.text,
        "share": share,
        "relative": relative,
        "utility_draws": utility_draws,
        "seed": seed,
        "limit": limit,
        "dtype": dtype,
    }
    job = _Smoothing(weights, criterion, kept, limit, tokenizer, form, seed, scale, reporter)
    plain_utility = job.measured()[0]
    depends = {k: settings[k] for k in ("benchmark", "template", "reveals", "relative", "seed", "limit", "dtype")}
    found, ledgers = [], []
    for one in sigmas:
        ledgers.append(Ledger(target, "certificate", depends | {"sigma": one, "weights": weights_fingerprint(model)}))
        outcomes = job.outcomes(one, draws, ledgers[-1])
        utility, measured = job.utility(one, min(utility_draws, draws))
        found.append(
            Smoothed(
                sigma=one,
                noise_norm=one * math.sqrt(weights.dimension),
                together=(together := job.together(outcomes, one, alpha / families)),
                questions=job.each(questions, plain, outcomes, one, alpha / families),
                reach=_reach(known, one, together),
                utility=utility,
                utility_draws=measured,
                broken=sum(outcome is None for outcome in outcomes),
                collapsed=_collapsed(plain_utility, utility),
            )
        )
    notes = []
    if not plain_utility:
        notes.append("the benchmark has nothing to measure utility on: of what use the smoothed model is, is not known")
    least = draws_needed(alpha / (families * len(plain)))
    if criterion.single and draws < least:
        notes.append(
            f"{draws} draws are too few for single questions: with {len(plain)} of them{_among(families)}, at least "
            f"{least} are needed for each to have a radius"
        )
    entry = Certificate(
        subject=subject.name,
        settings=settings,
        parameters=weights.dimension,
        criterion=criterion.in_words(),
        event=criterion.event(len(questions)),
        asked=len(questions),
        plain_revealed=sum(plain),
        alpha=alpha,
        relative=relative,
        plain_utility=plain_utility,
        smoothed=found,
        displacements=known,
        certified=certified_sentences(criterion, len(questions), found, alpha, relative),
        not_certified=not_certified_sentences(criterion, len(questions), found, known, relative),
        notes=notes,
        **made(start),
    )
    if target is not None:
        write_analysis(target, entry)
    for ledger in ledgers:
        ledger.remove()
    return entry


class _Smoothing:
    """One model, its questions, and the noise that it is put under."""

    def __init__(
        self,
        weights: Weights,
        criterion: Criterion,
        kept: Benchmark | None,
        limit: int | None,
        tokenizer: Any,
        template: Template,
        seed: int,
        scale: Scale | None,
        reporter: Reporter,
    ) -> None:
        self.weights, self.model = weights, weights.model
        self.criterion, self.kept, self.limit = criterion, kept, limit
        self.tokenizer, self.template = tokenizer, template
        self.seed, self.scale, self.reporter = seed, scale, reporter

    def outcomes(self, sigma: float, draws: int, ledger: Ledger) -> list[list[bool] | None]:
        with self.reporter.task(f"noise of {sigma:.3g}", draws) as task:
            return noisy_outcomes(
                self.weights,
                lambda: self.criterion.outcomes(self.model, self.tokenizer, self.template),
                sigma=sigma,
                draws=draws,
                seed=self.seed,
                scale=self.scale,
                ledger=ledger,
                task=task,
            )

    def utility(self, sigma: float, draws: int) -> tuple[Metrics, int]:
        """What the first draws' models still can, over all their samples together, and of how many draws it is."""
        with self.reporter.task("utility under noise", draws) as task:
            return self.measured((sigma, draws), task)

    def measured(self, noise: tuple[float, int] | None = None, task: Task | None = None) -> tuple[Metrics, int]:
        """The same without noise, by default."""
        if self.kept is None:
            return {}, 0
        samples: list[Sample] = []
        sigma, draws = noise or (0.0, 1)
        measured = 0
        for number in range(draws):
            moved = self.weights.at(noisy(sigma, self.seed, number, self.scale)) if sigma else contextlib.nullcontext()
            with moved, contextlib.suppress(NonFiniteLossError):
                samples += self.kept.samples(self.model, self.tokenizer, limit=self.limit, template=self.template)
                measured += 1
            if task is not None:
                task.advance()
        return (utility_of(samples, self.kept) if samples else {}), measured

    def together(self, outcomes: Sequence[list[bool] | None], sigma: float, alpha: float) -> Bound:
        revealed = sum(o is not None and self.criterion.together(o) for o in outcomes)
        return bound(revealed, len(outcomes), sigma, alpha)

    def each(
        self,
        asked: Sequence[Sample],
        plain: Sequence[bool],
        outcomes: Sequence[list[bool] | None],
        sigma: float,
        alpha: float,
    ) -> list[QuestionBound]:
        """Each question by itself, at its share of alpha."""
        if not self.criterion.single:
            return []
        return [
            QuestionBound(
                id=sample.id,
                question=sample.question or sample.id,
                plain=plain[place],
                bound=bound(
                    sum(o is not None and o[place] for o in outcomes), len(outcomes), sigma, alpha / len(asked)
                ),
            )
            for place, sample in enumerate(asked)
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
