"""TOFU's scores of a question, and its metrics over questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from letgo.benchmarks.engine.items import Item, Sample, asked_sample
from letgo.benchmarks.engine.questions import MIN_K, Part, means
from letgo.benchmarks.engine.reference import ReferenceResult
from letgo.benchmarks.engine.requests import Ask, Work
from letgo.benchmarks.tofu.prompts import Answer, Form, encode_answer, encode_question
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
    truth_ratio_score,
)
from letgo.metrics.privacy import loss_score, min_k, min_k_plus_plus, zlib_score
from letgo.metrics.summary import auc_metric, mean_metric
from letgo.runs.results import Metrics
from letgo.scoring.scoring import Generation, Query, Scores

UTILITY_SETS = ("retain", "authors", "facts")
UTILITY_SCORES = ("probability", "rouge", "truth_ratio")
FEWEST_AUTHORS = 5
MEMBERSHIP_SCORES = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm")


class TofuPart:
    """What TOFU asks about some items: all answers of each, in the benchmark's template, and a greedy answer.

    Args:
        tokenizer: of the model.
        items: what is asked.
        form: the template.
        length: tokens of prompt and answer together, of those scored and of those generated.
    """

    def __init__(self, tokenizer: Any, items: Sequence[Item], form: Form, *, length: int) -> None:
        self.tokenizer, self.items, self.form, self.length = tokenizer, items, form, length
        self.queries: list[Query] = []
        self.places: list[dict[str, tuple[int, int, Answer]]] = []
        for item in items:
            self.places.append(self._queries(item))
        self.asked = [index for index, item in enumerate(items) if item.task != "membership"]
        self.prompts = {index: encode_question(tokenizer, form, str(items[index].row.context)) for index in self.asked}
        for index, prompt in self.prompts.items():
            if len(prompt) >= length:
                raise UserError(
                    f"{items[index].row.where}: the question alone has {len(prompt)} tokens; nothing can be generated "
                    f"within TOFU's {length}"
                )

    def _queries(self, item: Item) -> dict[str, tuple[int, int, Answer]]:
        """Queries for the item's answers; each answer's query, its place in it, and its tokens."""
        question = str(item.row.context)
        places: dict[str, tuple[int, int, Answer]] = {}
        # Tokenised together with an answer, the question's last token may be another one: then it is another query.
        by_question: dict[tuple[int, ...], tuple[int, list[tuple[int, ...]]]] = {}
        paraphrase = [item.paraphrase] if item.paraphrase is not None else []
        for text in dict.fromkeys([item.row.target, *paraphrase, *item.wrong]):
            answer = encode_answer(self.tokenizer, self.form, question, text, length=self.length, where=item.row.where)
            number, answers = by_question.setdefault(answer.question, (len(self.queries) + len(by_question), []))
            places[text] = (number, len(answers), answer)
            answers.append(answer.labelled)
        self.queries += [Query(prefix, answers) for prefix, (_, answers) in by_question.items()]
        return places

    def digest(self, item: Item) -> str:
        """What the item's scores depend on beside the model and its tokenizer."""
        return digest_of(self.form, item.row.context, item.row.target, item.paraphrase, item.wrong)

    def part(self) -> Part:
        asks = [Ask(prompt, self.length - len(prompt)) for prompt in self.prompts.values()]
        return self.queries, asks, self._make

    def membership_queries(self) -> dict[str, Query]:
        """Of each membership item, by its id: its question and its own answer without the end token."""
        queries = {}
        for item, places in zip(self.items, self.places, strict=True):
            if item.task == "membership":
                _, _, answer = places[item.row.target]
                own = answer.labelled[: len(answer.labelled) - answer.ended]
                queries[item.id] = Query(answer.question, [own])
        return queries

    def _make(self, scored: list[list[Scores]], generated: list[list[Generation]]) -> list[Sample]:
        written = {index: answer.text.strip() for index, [answer] in zip(self.asked, generated, strict=True)}
        samples = []
        for index, (item, places) in enumerate(zip(self.items, self.places, strict=True)):
            found = {text: (scored[query][place], answer) for text, (query, place, answer) in places.items()}
            text = written.get(index, "")
            scores = _membership(item, found) if item.task == "membership" else _scores(item, found, text)
            samples.append(asked_sample(item, scores, text, self.digest(item)))
        return samples


def with_gradient_norms(work: Work, model: Any, queries: Mapping[str, Query]) -> Work:
    """A work whose samples also get the gradient-norm membership score (the negative norm), by their ids."""

    def finish(
        scored: list[list[Scores]], generated: list[list[Generation]], advance: Callable[[int], None]
    ) -> list[Sample]:
        samples = work.finish(scored, generated, advance)
        norms = dict(zip(queries, gradient_norms(model, list(queries.values()), advance=advance), strict=True))
        return [replace(s, scores={**s.scores, "mia_gradnorm": -norms[s.id]}) if s.id in norms else s for s in samples]

    return replace(work, finish=finish, steps=work.steps + len(queries))


def _scores(item: Item, found: Mapping[str, tuple[Scores, Answer]], generated: str) -> dict[str, float]:
    right, answer = found[item.row.target]
    wrong = [found[text][0].logps for text in item.wrong]
    scores = {"probability": probability(right.logps)}
    if item.set in ("authors", "facts"):
        scores = {
            "probability": normalised_probability(right.logps, wrong),
            "answer_probability": probability(right.logps),
        }
    scores["rouge"] = rouge_l_recall(item.row.target, generated)
    if item.paraphrase is not None and wrong:
        scores["truth_ratio"] = truth_ratio(found[item.paraphrase][0].logps, wrong)
    if item.set in ("forget", "retain") and right.matches is not None:
        # Of the answer itself: whether its end is foreseen says nothing of what it holds.
        matches = right.matches[: len(right.matches) - answer.ended]
        scores["extraction_strength"] = extraction_strength(matches)
        scores["exact_memorization"] = exact_memorization(matches)
    return scores


def _membership(item: Item, found: Mapping[str, tuple[Scores, Answer]]) -> dict[str, float]:
    """Each the larger, the more familiar; of the answer without its end token."""
    scores, answer = found[item.row.target]
    own = len(scores.logps) - answer.ended
    assert scores.means is not None
    assert scores.deviations is not None
    logps = scores.logps[:own]
    return {
        "mia_loss": loss_score(logps),
        "mia_zlib": zlib_score(logps, item.row.target),
        "mia_min_k": min_k(logps, MIN_K),
        "mia_min_k_plus_plus": min_k_plus_plus(logps, scores.means[:own], scores.deviations[:own], MIN_K),
    }


def _units(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with what is drawn again for intervals as their groups: authors, or rows where the authors are too
    few to say how much they differ (forget01 has two)."""
    if len({sample.group for sample in samples}) >= FEWEST_AUTHORS:
        return list(samples)
    return [replace(sample, group=sample.id) for sample in samples]


def tofu_metrics(samples: Sequence[Sample], reference: ReferenceResult | None) -> Metrics:
    """TOFU's metrics of samples; see `letgo.benchmarks.tofu.tofu.Tofu.summarise`."""
    metrics: Metrics = {}
    for name in ("forget", *UTILITY_SETS):
        own = _units([s for s in samples if s.set == name])
        metrics |= means(own, name, ("probability", "rouge"))
        rated = [s for s in own if "truth_ratio" in s.scores]
        if rated:
            metrics[f"{name}_truth_ratio"] = mean_metric(
                [truth_ratio_score(s.scores["truth_ratio"], forget=name == "forget") for s in rated],
                [s.group for s in rated],
            )
        if name == "forget":
            metrics |= means(own, name, ("extraction_strength", "exact_memorization"))
    if all(f"{s}_{score}" in metrics for s in UTILITY_SETS for score in UTILITY_SCORES):
        metrics["model_utility"] = harmonic_mean_metric([_utility_columns(samples, name) for name in UTILITY_SETS])
    metrics |= _membership_aucs(samples, reference)
    rated = [s for s in samples if s.set == "forget" and "truth_ratio" in s.scores]
    if reference is not None and rated:
        pairs = reference.matched(rated, "truth_ratio")
        metrics["forget_quality"] = forget_quality_metric(*zip(*pairs, strict=True))
    return metrics


def _utility_columns(samples: Sequence[Sample], name: str) -> tuple[list[list[float]], list[str]]:
    """Of one set: its three scores, a list each, and the rows' groups."""
    own = _units([s for s in samples if s.set == name and all(score in s.scores for score in UTILITY_SCORES)])
    ratios = [truth_ratio_score(s.scores["truth_ratio"], forget=False) for s in own]
    columns = [[s.scores["probability"] for s in own], [s.scores["rouge"] for s in own], ratios]
    return columns, [s.group for s in own]


def _membership_aucs(samples: Sequence[Sample], reference: ReferenceResult | None) -> Metrics:
    """AUC of each membership score: 1 where every forget row is more familiar than every holdout row, chance 0.5. With
    the retain model's result there is one more: the loss against that model's."""
    metrics: Metrics = {}
    sets = {name: [s for s in samples if s.set == name and "mia_loss" in s.scores] for name in ("forget", "holdout")}
    if not all(sets.values()):
        return metrics
    for score in MEMBERSHIP_SCORES:
        key = f"mia_{score}"
        members, others = ([s.scores[key] for s in own if key in s.scores] for own in sets.values())
        if members and others:
            metrics[f"forget_{key}_auc"] = auc_metric(members, others)
    if reference is not None and reference.has("mia_loss"):
        members, others = ([own - other for own, other in reference.matched(s, "mia_loss")] for s in sets.values())
        metrics["forget_mia_reference_auc"] = auc_metric(members, others)
    return metrics
