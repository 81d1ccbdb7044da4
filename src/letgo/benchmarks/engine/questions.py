"""The plain way to score items and texts: choice, probability, ROUGE, truth ratio, perplexity, membership."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from letgo.benchmarks.engine.items import Item, Sample, Text, answer_tokens, shown
from letgo.benchmarks.engine.requests import Ask, Work
from letgo.core.errors import UserError
from letgo.data.encode import encode_prompt, encode_target, start_tokens, target_text
from letgo.metrics.memorization import probability, rouge_l_recall, truth_ratio
from letgo.metrics.privacy import min_k
from letgo.metrics.summary import auc_metric, mean_metric, perplexity_metric
from letgo.metrics.utility import choice_accuracy, degeneration
from letgo.runs.results import Metrics
from letgo.scoring.scoring import Generation, Query, Scores

MIN_K = 0.4
"""MUSE takes PrivLeak at Min-40 %."""
MEMBERSHIP = ("forget", "holdout")
_MAX_ANSWER_TOKENS = 24
_GENERAL_PROMPT_WORDS = 12
_GENERAL_NEW_TOKENS = 40
_GENERAL_GENERATED = 12
"""General texts that are also continued, to see whether the model still writes text."""

Make = Callable[[list[list[Scores]], list[list[Generation]]], list[Sample]]
Part = tuple[list[Query], list[Ask], Make]
"""What one kind of thing needs, and how samples are made of it; `joined` puts parts together."""


def joined(parts: Sequence[Part], *, statistics: bool = False, matches: bool = False) -> Work:
    """Parts as one work; their samples follow each other in the parts' order."""

    def finish(
        scored: list[list[Scores]], generated: list[list[Generation]], advance: Callable[[int], None]
    ) -> list[Sample]:
        samples, q, a = [], 0, 0
        for queries, asks, make in parts:
            samples += make(scored[q : q + len(queries)], generated[a : a + len(asks)])
            q, a = q + len(queries), a + len(asks)
        return samples

    queries, asks = [q for part in parts for q in part[0]], [a for part in parts for a in part[1]]
    return Work(finish, queries, asks, statistics=statistics, matches=matches)


def items_part(
    tokenizer: Any, items: Sequence[Item], form: Literal["plain", "chat"], *, generated: int | None = None
) -> Part:
    """Items asked in the data's own template: probability of the answer, choice and truth ratio where there are wrong
    answers, and ROUGE-L recall of a greedy answer for at most `generated` questions of a set."""
    prompts = [encode_prompt(tokenizer, item.row, form) for item in items]
    queries, places = [], []
    for item, prompt in zip(items, prompts, strict=True):
        # An answer that stands in for its own paraphrase is scored once.
        answers = list(dict.fromkeys(_answers(item)))
        continuations = [
            answer_tokens(tokenizer, target_text(item.row, form, answer), item.row.where) for answer in answers
        ]
        if not prompt:
            # A tokenizer without a start token gives a `text` row no prefix: its own first token serves.
            prompt, continuations = continuations[0][:1], [continuations[0][1:]]
            if not continuations[0]:
                raise UserError(f"{item.row.where}: a text of one token can't be scored")
        queries.append(Query(prompt, continuations))
        places.append({answer: place for place, answer in enumerate(answers)})
    questions = [index for index, item in enumerate(items) if item.row.form != ("text",)]
    asked = spread(questions, items, generated)
    longest = max((len(queries[i].continuations[0]) for i in asked), default=0)
    room = min(max(2 * longest, 8), max(_MAX_ANSWER_TOKENS, longest))

    def make(scored: list[list[Scores]], answers: list[list[Generation]]) -> list[Sample]:
        written = {index: answer.text for index, [answer] in zip(asked, answers, strict=True)}
        samples = []
        for index, (item, found) in enumerate(zip(items, scored, strict=True)):
            right, *others = [found[places[index][answer]].logps for answer in _answers(item)]
            wrong, reworded = others[: len(item.wrong)], others[len(item.wrong) :]
            answer = first_line(written.get(index, ""))
            scores = {"probability": probability(right)}
            if index in written:
                scores["rouge"] = rouge_l_recall(item.row.target, answer)
            if wrong:
                scores["accuracy"] = choice_accuracy(right, wrong)
            if reworded:
                scores["truth_ratio"] = truth_ratio(reworded[0], reworded[1:])
            question, target = shown(item.row), item.row.target[:400]
            samples.append(Sample(item.set, item.id, item.group, scores, question, target, answer[:400]))
        return samples

    return queries, [Ask(prompts[i], room) for i in asked], make


def texts_part(tokenizer: Any, texts: Sequence[Text]) -> Part:
    """Texts scored as a whole, Min-K of those of the membership sets; some general ones are continued too."""
    queries = []
    for text in texts:
        ids = start_tokens(tokenizer) + encode_target(tokenizer, text.text)
        if len(ids) < 2:
            raise UserError(f"text {text.id!r} of benchmark has fewer than two tokens")
        queries.append(Query(ids[:1], [ids[1:]]))
    general = [text for text in texts if text.set == "general"][:_GENERAL_GENERATED]
    prompts = {text.id: " ".join(text.text.split()[:_GENERAL_PROMPT_WORDS]) for text in general}
    asks = [
        Ask(start_tokens(tokenizer) + encode_target(tokenizer, prompts[text.id]), _GENERAL_NEW_TOKENS)
        for text in general
    ]

    def make(scored: list[list[Scores]], continued: list[list[Generation]]) -> list[Sample]:
        written = {name: answer.text.strip() for name, [answer] in zip(prompts, continued, strict=True)}
        samples = []
        for text, [found] in zip(texts, scored, strict=True):
            logps = found.logps
            scores = {"total_logp": float(logps.double().sum()), "tokens": float(len(logps))}
            if text.set in MEMBERSHIP:
                scores["min_k"] = min_k(logps, MIN_K)
            prompt, out = prompts.get(text.id, ""), written.get(text.id, "")
            if prompt:
                scores["degenerate"] = degeneration(out)
            samples.append(Sample(text.set, text.id, text.group, scores, question=prompt, generated=out[:400]))
        return samples

    return queries, asks, make


def means(samples: Sequence[Sample], prefix: str, scores: Sequence[str]) -> Metrics:
    """`prefix_score`: the mean of each score over the samples that have it, where there are any."""
    metrics: Metrics = {}
    for score in scores:
        chosen = [s for s in samples if score in s.scores]
        if chosen:
            metrics[f"{prefix}_{score}"] = mean_metric([s.scores[score] for s in chosen], [s.group for s in chosen])
    return metrics


def general_metrics(samples: Sequence[Sample]) -> Metrics:
    """Perplexity and degeneration of the general texts among the samples."""
    metrics: Metrics = {}
    own = [s for s in samples if s.set == "general"]
    texts = [s for s in own if "total_logp" in s.scores]
    if texts:
        totals, tokens = [s.scores["total_logp"] for s in texts], [int(s.scores["tokens"]) for s in texts]
        metrics["general_perplexity"] = perplexity_metric(totals, tokens, [s.group for s in texts])
    return metrics | means(own, "general", ("degenerate",))


def membership_metrics(samples: Sequence[Sample]) -> Metrics:
    """The membership AUC by Min-K, where both forget and holdout texts were scored."""
    members, others = ([s.scores["min_k"] for s in samples if s.set == n and "min_k" in s.scores] for n in MEMBERSHIP)
    return {"forget_membership_auc": auc_metric(members, others)} if members and others else {}


def spread(indices: Sequence[int], items: Sequence[Item], most: int | None) -> list[int]:
    """At most `most` of each set's indices, evenly spread over the set."""
    chosen = []
    for name in dict.fromkeys(items[index].set for index in indices):
        own = [index for index in indices if items[index].set == name]
        step = 1.0 if most is None else max(1.0, len(own) / most)
        chosen += [own[int(place * step)] for place in range(int(len(own) / step + 1e-9))]
    return chosen


def first_line(text: str) -> str:
    """A generated answer ends where the model begins a new question of its own."""
    return text.strip().split("\n")[0].strip()


def _answers(item: Item) -> list[str]:
    """The right answer, the wrong ones, then the reworded right one and the wrong ones that go with it."""
    answers = [item.row.target, *item.wrong]
    if item.paraphrase is not None:
        answers += [item.paraphrase, *(item.wrong_paraphrases or item.wrong)]
    return answers
