"""The plain way to score items and texts: choice, probability, ROUGE, truth ratio, perplexity, membership."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from letgo.benchmarks.engine.items import Item, Sample, SetName, Text, answer_tokens, shown
from letgo.benchmarks.engine.requests import Advance, Answers, Ask, ScoredQueries, Work
from letgo.core.errors import UserError
from letgo.data.encode import encode_prompt, encode_target, start_tokens, target_text
from letgo.metrics import record_of
from letgo.metrics.memorization import probability, rouge_l_recall, truth_ratio
from letgo.metrics.privacy import min_k
from letgo.metrics.summary import auc_metric, mean_metric, perplexity_metric
from letgo.metrics.utility import choice_accuracy, degeneration
from letgo.runs.results import Metrics
from letgo.scoring.scoring import Query, Scores

MIN_K = 0.4
"""MUSE takes PrivLeak at Min-40 %."""
MEMBERSHIP: tuple[Literal["forget", "holdout"], ...] = ("forget", "holdout")
"""The sets of a membership test: what the model was trained on, and what it was not."""
QUESTION_SCORES = ("accuracy", "probability", "rouge", "truth_ratio")
"""What `items_part` scores of a question, in the order of the record: a new score is computed there and named here."""
QUESTION_SETS = ("forget", "trained", "retain", "control")
"""The sets that these scores are taken over, in the order of the record."""
_MAX_ANSWER_TOKENS = 24
_GENERAL_PROMPT_WORDS = 12
_GENERAL_NEW_TOKENS = 40
_GENERAL_GENERATED = 12
"""General texts that are also continued, to see whether the model still writes text."""


def items_part(
    tokenizer: Any,
    items: Sequence[Item],
    form: Literal["plain", "chat"],
    *,
    generated: int | Mapping[SetName, int] | None = None,
) -> Work:
    """Items in the data's own template: probability of the answer, choice and truth ratio where there are wrong
    answers, and ROUGE-L recall of a greedy answer to at most `generated` questions of a set."""
    prompts = [encode_prompt(tokenizer, item.row, form) for item in items]
    # An answer that stands in for its own paraphrase is scored once.
    distinct = [list(dict.fromkeys(_answers(item))) for item in items]
    queries = []
    for item, prompt, answers in zip(items, prompts, distinct, strict=True):
        row = item.row
        continuations = [answer_tokens(tokenizer, target_text(row, form, answer), row.where) for answer in answers]
        if not prompt:
            # A tokenizer without a start token gives a `text` row no prefix: its own first token serves.
            prompt, continuations = continuations[0][:1], [continuations[0][1:]]
            if not continuations[0]:
                raise UserError(f"{row.where}: a text of one token can't be scored")
        queries.append(Query(prompt, continuations))
    questions = [index for index, item in enumerate(items) if item.row.form != ("text",)]
    asked = spread(questions, items, generated)
    longest = max((len(queries[i].continuations[0]) for i in asked), default=0)
    room = min(max(2 * longest, 8), max(_MAX_ANSWER_TOKENS, longest))

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        written = {index: given[0].text for index, given in zip(asked, answers, strict=True) if given}
        samples = []
        for index, item in enumerate(items):
            answer = first_line(written[index]) if index in written else None
            scores = _scores(item, distinct[index], scored[index], answer)
            if scores:
                question, target, shown_answer = shown(item.row), item.row.target[:400], (answer or "")[:400]
                samples.append(Sample(item.set, item.id, item.group, scores, question, target, shown_answer))
        return samples

    return Work(finish, queries, [Ask(prompts[i], room) for i in asked], partial=True)


def _scores(item: Item, answers: Sequence[str], scored: Sequence[Scores], written: str | None) -> dict[str, float]:
    """The scores of an item, as far as its answers were scored, and an answer was written."""
    scores: dict[str, float] = {}
    wrong: list[Tensor] = []
    reworded: list[Tensor] = []
    if scored:
        logps = {text: scores.logps for text, scores in zip(answers, scored, strict=True)}
        right, *others = [logps[text] for text in _answers(item)]
        wrong, reworded = others[: len(item.wrong)], others[len(item.wrong) :]
        scores["probability"] = probability(right)
    if written is not None:
        scores["rouge"] = rouge_l_recall(item.row.target, written)
    if wrong:
        scores["accuracy"] = choice_accuracy(right, wrong)
    if reworded:
        scores["truth_ratio"] = truth_ratio(reworded[0], reworded[1:])
    return scores


def texts_part(tokenizer: Any, texts: Sequence[Text]) -> Work:
    """Texts scored as a whole, with Min-K in the membership sets; some general ones are continued too."""
    queries = []
    for text in texts:
        ids = start_tokens(tokenizer) + encode_target(tokenizer, text.text)
        if len(ids) < 2:
            raise UserError(f"text {text.id!r} of benchmark has fewer than two tokens")
        queries.append(Query(ids[:1], [ids[1:]]))
    general = [text for text in texts if text.set == "general"][:_GENERAL_GENERATED]
    prompts = {text.id: " ".join(text.text.split()[:_GENERAL_PROMPT_WORDS]) for text in general}
    begun = (start_tokens(tokenizer) + encode_target(tokenizer, prompt) for prompt in prompts.values())

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        written = {name: given[0].text.strip() for name, given in zip(prompts, answers, strict=True) if given}
        samples = []
        for text, continuations in zip(texts, scored, strict=True):
            scores: dict[str, float] = {}
            for logps in (continuation.logps for continuation in continuations):
                scores |= {"total_logp": float(logps.double().sum()), "tokens": float(len(logps))}
                if text.set in MEMBERSHIP:
                    scores["min_k"] = min_k(logps, MIN_K)
            prompt, out = prompts.get(text.id, ""), written.get(text.id, "")
            if text.id in written:
                scores["degenerate"] = degeneration(out)
            if scores:
                samples.append(Sample(text.set, text.id, text.group, scores, question=prompt, generated=out[:400]))
        return samples

    return Work(finish, queries, [Ask(prompt, _GENERAL_NEW_TOKENS) for prompt in begun], partial=True)


def of_set(samples: Iterable[Sample], name: str) -> list[Sample]:
    """The samples of a set."""
    return [sample for sample in samples if sample.set == name]


def means(samples: Sequence[Sample], prefix: str, scores: Sequence[str]) -> Metrics:
    """`prefix_score`: the mean of each score over the samples that have it, if any do."""
    metrics: Metrics = {}
    for score in scores:
        rated = [s for s in samples if score in s.scores]
        if rated:
            record = record_of(score)
            ceiling = 1.0 if record is None or record.ceiling is None else record.ceiling
            values, groups = [s.scores[score] for s in rated], [s.group for s in rated]
            metrics[f"{prefix}_{score}"] = mean_metric(values, groups, (0.0, ceiling))
    return metrics


def cut_metrics(samples: Sequence[Sample], prefix: str) -> Metrics:
    """`prefix_cut`: the share of samples that were cut, if any were."""
    return means(samples, prefix, ("cut",)) if any(s.scores.get("cut") for s in samples) else {}


def general_metrics(samples: Sequence[Sample]) -> Metrics:
    """Perplexity and degeneration of the general texts among the samples."""
    metrics: Metrics = {}
    general = of_set(samples, "general")
    texts = [s for s in general if "total_logp" in s.scores]
    if texts:
        totals, tokens = [s.scores["total_logp"] for s in texts], [int(s.scores["tokens"]) for s in texts]
        metrics["general_perplexity"] = perplexity_metric(totals, tokens, [s.group for s in texts])
    return metrics | means(general, "general", ("degenerate",))


def membership_metrics(samples: Sequence[Sample]) -> Metrics:
    """The membership AUC by Min-K, where both forget and holdout texts were scored."""
    members, others = ([s.scores["min_k"] for s in samples if s.set == n and "min_k" in s.scores] for n in MEMBERSHIP)
    return {"forget_membership_auc": auc_metric(members, others)} if members and others else {}


def spread(indices: Sequence[int], items: Sequence[Item], most: int | Mapping[SetName, int] | None) -> list[int]:
    """At most `most` of each set's indices, evenly spread over the set."""
    chosen = []
    for name in dict.fromkeys(items[index].set for index in indices):
        members = [index for index in indices if items[index].set == name]
        limit = most.get(name) if isinstance(most, Mapping) else most
        step = 1.0 if limit is None else max(1.0, len(members) / limit)
        chosen += [members[int(number * step)] for number in range(int(len(members) / step + 1e-9))]
    return chosen


def first_line(text: str) -> str:
    """The first line of a generated answer: after it the model often begins a new question."""
    return text.strip().split("\n")[0].strip()


def _answers(item: Item) -> list[str]:
    """The right answer, the wrong ones, then the reworded right one and the wrong ones that go with it."""
    answers = [item.row.target, *item.wrong]
    if item.paraphrase is not None:
        answers += [item.paraphrase, *(item.wrong_paraphrases or item.wrong)]
    return answers
