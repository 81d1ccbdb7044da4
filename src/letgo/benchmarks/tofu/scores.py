"""TOFU's scores of a question, and its metrics over questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from letgo.benchmarks.engine.items import Item, Sample, asked_sample
from letgo.benchmarks.engine.questions import MIN_K, means, of_set
from letgo.benchmarks.engine.reference import ReferenceResult
from letgo.benchmarks.engine.requests import Advance, Answers, Ask, ScoredQueries, Work
from letgo.benchmarks.tofu.prompts import Answer, AnswerForm, encode_answer, encode_question
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.metrics.composite import forget_quality_metric, harmonic_mean_metric
from letgo.metrics.gradients import gradient_norms
from letgo.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    normalised_probability,
    probability,
    rouge_l_recall,
    truth_ratio,
    truth_ratio_prob_mean,
    truth_ratio_score,
)
from letgo.metrics.privacy import loss_score, min_k, min_k_plus_plus, zlib_score
from letgo.metrics.summary import auc_metric, mean_metric
from letgo.runs.results import Metrics
from letgo.scoring.scoring import Query, Scores

UTILITY_SETS = ("retain", "authors", "facts")
UTILITY_SCORES = ("probability", "rouge", "truth_ratio")
FEWEST_AUTHORS = 5
MEMBERSHIP_SCORES = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm")


def tofu_part(
    model: Any, tokenizer: Any, items: Sequence[Item], form: AnswerForm, *, length: int, gradnorm: bool
) -> Work:
    """All answers to each item's question, in the benchmark's template, and a greedy answer; that one alone
    where given answers can't be scored.

    Args:
        model, tokenizer: the model to be scored.
        items: what to ask.
        form: the template.
        length: tokens of prompt and answer together, of those scored and of those generated.
        gradnorm: also give items of the task membership the gradient-norm score (the negative norm).
    """
    queries: list[Query] = []
    positions = [_add_queries(queries, tokenizer, item, form, length) for item in items]
    membership = [item.task == "membership" for item in items]
    prompts = {}
    for index, item in enumerate(items):
        if not membership[index]:
            prompts[index] = prompt = encode_question(tokenizer, form, str(item.row.context))
            if len(prompt) >= length:
                raise UserError(
                    f"{item.row.where}: the question alone has {len(prompt)} tokens; nothing can be generated "
                    f"within TOFU's {length}"
                )
    # For gradients: the question, and the answer without its end token.
    trained = {}
    for item, of_item in zip(items, positions, strict=True):
        if gradnorm and item.task == "membership":
            _, _, answer = of_item[item.row.target]
            trained[item.id] = Query(answer.question, [answer.labelled[: len(answer.labelled) - answer.ended]])

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        written = {index: given[0].text.strip() for index, given in zip(prompts, answers, strict=True) if given}
        norms: dict[str, float] = {}
        if trained:
            norms = dict(zip(trained, gradient_norms(model, list(trained.values()), advance=advance), strict=True))
        samples = []
        for index, item in enumerate(items):
            answered = {
                t: (scored[query][number], answer)
                for t, (query, number, answer) in positions[index].items()
                if scored[query]
            }
            text = written.get(index, "")
            scores = _membership(item, answered) if membership[index] else _scores(item, answered, text)
            if item.id in norms:
                scores["mia_gradnorm"] = -norms[item.id]
            samples.append(asked_sample(item, scores, text, item_digest(item, form)))
        return samples

    asks = [Ask(prompt, length - len(prompt)) for prompt in prompts.values()]
    return Work(
        finish,
        queries,
        asks,
        statistics=any(membership),
        matches=True,
        steps=len(trained),
        weights=bool(trained),
        partial=True,
    )


def item_digest(item: Item, form: AnswerForm) -> str:
    """A hash of what the item's scores depend on beside the model and its tokenizer."""
    return digest_of(form, item.row.context, item.row.target, item.paraphrase, item.wrong)


def _add_queries(
    queries: list[Query], tokenizer: Any, item: Item, form: AnswerForm, length: int
) -> dict[str, tuple[int, int, Answer]]:
    """Add queries for the item's answers; returns each answer's query, its number in that query, and its tokens."""
    question = str(item.row.context)
    positions: dict[str, tuple[int, int, Answer]] = {}
    # Tokenised together with an answer, the question's last token may be another one: then it is another query.
    by_question: dict[tuple[int, ...], tuple[int, list[tuple[int, ...]]]] = {}
    paraphrase = [item.paraphrase] if item.paraphrase is not None else []
    for text in dict.fromkeys([item.row.target, *paraphrase, *item.wrong]):
        answer = encode_answer(tokenizer, form, question, text, length=length, where=item.row.where)
        query, answers = by_question.setdefault(answer.question, (len(queries) + len(by_question), []))
        positions[text] = (query, len(answers), answer)
        answers.append(answer.labelled)
    queries += [Query(prefix, answers) for prefix, (_, answers) in by_question.items()]
    return positions


def _scores(item: Item, answered: Mapping[str, tuple[Scores, Answer]], generated: str) -> dict[str, float]:
    if not answered:
        return {"rouge": rouge_l_recall(item.row.target, generated)}
    right, answer = answered[item.row.target]
    wrong = [answered[text][0].logps for text in item.wrong]
    scores = {"probability": probability(right.logps)}
    if item.set in ("authors", "facts"):
        scores["answer_probability"] = scores["probability"]
        scores["probability"] = normalised_probability(right.logps, wrong)
    scores["rouge"] = rouge_l_recall(item.row.target, generated)
    if item.paraphrase is not None and wrong:
        scores["truth_ratio"] = truth_ratio(answered[item.paraphrase][0].logps, wrong)
    if item.set in ("forget", "retain") and right.matches is not None:
        # Without the end token: whether the model foresees that says nothing about the answer.
        matches = right.matches[: len(right.matches) - answer.ended]
        scores["extraction_strength"] = extraction_strength(matches)
        scores["exact_memorization"] = exact_memorization(matches)
    return scores


def _membership(item: Item, answered: Mapping[str, tuple[Scores, Answer]]) -> dict[str, float]:
    """Membership scores of the answer without its end token; each is the larger, the more familiar the answer is."""
    scores, answer = answered[item.row.target]
    count = len(scores.logps) - answer.ended
    assert scores.means is not None
    assert scores.deviations is not None
    logps = scores.logps[:count]
    return {
        "mia_loss": loss_score(logps),
        "mia_zlib": zlib_score(logps, item.row.target),
        "mia_min_k": min_k(logps, MIN_K),
        "mia_min_k_plus_plus": min_k_plus_plus(logps, scores.means[:count], scores.deviations[:count], MIN_K),
    }


def _units(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the groups that intervals are over: authors, or rows where the authors are too few to show how
    much they differ (forget01 has two)."""
    if len({sample.group for sample in samples}) >= FEWEST_AUTHORS:
        return list(samples)
    return [replace(sample, group=sample.id) for sample in samples]


def tofu_metrics(samples: Sequence[Sample], reference: ReferenceResult | None) -> Metrics:
    """TOFU's metrics of samples; see `letgo.benchmarks.tofu.tofu.Tofu.metrics_of`."""
    metrics: Metrics = {}
    for name in ("forget", *UTILITY_SETS):
        members = _units(of_set(samples, name))
        metrics |= means(members, name, ("probability", "rouge"))
        rated = [s for s in members if "truth_ratio" in s.scores]
        if rated:
            ratios, groups = [s.scores["truth_ratio"] for s in rated], [s.group for s in rated]
            classic = [truth_ratio_score(ratio, forget=name == "forget") for ratio in ratios]
            metrics[f"{name}_truth_ratio"] = mean_metric(classic, groups)
            shares = [truth_ratio_prob_mean(ratio) for ratio in ratios]
            metrics[f"{name}_truth_ratio_prob_mean"] = mean_metric(shares, groups)
        if name == "forget":
            metrics |= means(members, name, ("extraction_strength", "exact_memorization"))
    if all(f"{s}_{score}" in metrics for s in UTILITY_SETS for score in UTILITY_SCORES):
        metrics["model_utility"] = harmonic_mean_metric([_utility_columns(samples, name) for name in UTILITY_SETS])
    metrics |= _membership_aucs(samples, reference)
    rated = [s for s in of_set(samples, "forget") if "truth_ratio" in s.scores]
    if reference is not None and rated:
        pairs = reference.matched(rated, "truth_ratio")
        metrics["forget_quality"] = forget_quality_metric(*zip(*pairs, strict=True))
    return metrics


def _utility_columns(samples: Sequence[Sample], name: str) -> tuple[list[list[float]], list[str]]:
    """A set's three scores, a list each, and the rows' groups."""
    rated = _units([s for s in of_set(samples, name) if all(score in s.scores for score in UTILITY_SCORES)])
    ratios = [truth_ratio_score(s.scores["truth_ratio"], forget=False) for s in rated]
    columns = [[s.scores["probability"] for s in rated], [s.scores["rouge"] for s in rated], ratios]
    return columns, [s.group for s in rated]


def _membership_aucs(samples: Sequence[Sample], reference: ReferenceResult | None) -> Metrics:
    """AUC of each membership score: 1 where every forget row is more familiar than every holdout row, chance 0.5. With
    the retain model's result also the AUC of the loss less that model's."""
    metrics: Metrics = {}
    sets = [[s for s in of_set(samples, name) if "mia_loss" in s.scores] for name in ("forget", "holdout")]
    if not all(sets):
        return metrics
    for score in MEMBERSHIP_SCORES:
        key = f"mia_{score}"
        members, others = ([s.scores[key] for s in rows if key in s.scores] for rows in sets)
        if members and others:
            metrics[f"forget_{key}_auc"] = auc_metric(members, others)
    if reference is not None and reference.has("mia_loss"):
        members, others = ([mine - other for mine, other in reference.matched(rows, "mia_loss")] for rows in sets)
        metrics["forget_mia_reference_auc"] = auc_metric(members, others)
    return metrics
