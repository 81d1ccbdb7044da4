"""MUSE's scores, each with the benchmark's own prompt, length and cut, and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from letgo.benchmarks.engine.items import Item, Sample, Text, asked_sample
from letgo.benchmarks.engine.questions import MIN_K, Part, means
from letgo.benchmarks.engine.reference import ReferenceResult
from letgo.benchmarks.engine.requests import Ask
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.metrics.composite import privleak_metric
from letgo.metrics.memorization import rouge_l_f1
from letgo.metrics.privacy import loss_score, min_k
from letgo.metrics.summary import auc_metric
from letgo.models.load import context_length
from letgo.runs.results import Metric, Metrics
from letgo.scoring.scoring import Generation, Scores, text_query

VERBATIM_TOKENS = 128
KNOWLEDGE_TOKENS = 32
KNOWLEDGE_STOPS = ("\n\n", "\nQuestion", "Question:")


def verbatim_part(model: Any, tokenizer: Any, items: Sequence[Item]) -> Part:
    """VerbMem: 128 tokens of greedy continuation against as many of the text itself, ROUGE-L F1 × 100."""
    prompts = [_tokens(tokenizer, str(item.row.context)) for item in items]
    # The benchmark counts a start token among the 128 of the true text.
    true = [
        tokenizer.decode(
            _tokens(tokenizer, item.row.target)[:VERBATIM_TOKENS],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=True,
        )
        for item in items
    ]
    for item, prompt, text in zip(items, prompts, true, strict=True):
        _check_room(model, len(prompt) + VERBATIM_TOKENS, item.row.where)
        if not text.strip():
            raise UserError(f"{item.row.where}: the true text {item.row.target[:60]!r} has no tokens to compare with")
    asks = [Ask(prompt, VERBATIM_TOKENS, clean_up=True) for prompt in prompts]

    def make(scored: list[list[Scores]], generated: list[list[Generation]]) -> list[Sample]:
        return [
            asked_sample(item, {"verbmem": 100.0 * rouge_l_f1(text, answer.text)}, answer.text, digest_of(prompt, text))
            for item, prompt, text, [answer] in zip(items, prompts, true, generated, strict=True)
        ]

    return [], asks, make


def knowledge_part(model: Any, tokenizer: Any, items: Sequence[Item], examples: Sequence[tuple[str, str]]) -> Part:
    """KnowMem: an answer of 32 greedy tokens after ten worked examples, cut at the next question; ROUGE-L F1 × 100."""
    before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in examples)
    prompts = [_tokens(tokenizer, f"{before}Question: {item.row.context}\nAnswer: ") for item in items]
    for item, prompt in zip(items, prompts, strict=True):
        _check_room(model, len(prompt) + KNOWLEDGE_TOKENS, item.row.where)
    asks = [Ask(prompt, KNOWLEDGE_TOKENS, KNOWLEDGE_STOPS, clean_up=True) for prompt in prompts]

    def make(scored: list[list[Scores]], generated: list[list[Generation]]) -> list[Sample]:
        return [
            asked_sample(
                item,
                {"knowmem": 100.0 * rouge_l_f1(item.row.target, answer.text)},
                answer.text,
                digest_of(before, item.row.context, item.row.target),
            )
            for item, [answer] in zip(items, generated, strict=True)
        ]

    return [], asks, make


def privacy_part(model: Any, tokenizer: Any, texts: Sequence[Text]) -> Part:
    """PrivLeak's scores: the mean of the 40 % least likely tokens' log-probabilities of each whole text."""
    queries = []
    for text in texts:
        tokens = _tokens(tokenizer, text.text)
        if len(tokens) < 4:
            raise UserError(f"muse {text.id}: a text of {len(tokens)} tokens is too short for Min-{MIN_K:.0%}")
        _check_room(model, len(tokens), f"muse {text.id}")
        queries.append(text_query(tokens))

    def make(scored: list[list[Scores]], generated: list[list[Generation]]) -> list[Sample]:
        return [
            Sample(
                text.set,
                text.id,
                text.group,
                {"min_k": min_k(found.logps, MIN_K), "loss": -loss_score(found.logps)},
                digest=text_digest(text),
            )
            for text, [found] in zip(texts, scored, strict=True)
        ]

    return queries, [], make


def text_digest(text: Text) -> str:
    return digest_of(text.text)


def muse_metrics(samples: Sequence[Sample], retrained_auc: float, reference: ReferenceResult | None) -> Metrics:
    """MUSE's metrics of samples. `retrained_auc` serves where there is no `reference`."""
    forget, retain = ([s for s in samples if s.set == name] for name in ("forget", "retain"))
    metrics = means(forget, "forget", ("verbmem", "knowmem")) | means(retain, "retain", ("knowmem",))
    private = {
        name: [s for s in samples if s.set == name and "min_k" in s.scores] for name in ("forget", "retain", "holdout")
    }
    if private["forget"] and private["holdout"]:
        members, others = ([s.scores["min_k"] for s in private[name]] for name in ("forget", "holdout"))
        if reference is None:
            metrics["forget_privleak"] = privleak_metric(members, others, retrained_auc=retrained_auc)
        else:
            theirs = tuple(
                [score for _, score in reference.matched(private[name], "min_k")] for name in ("forget", "holdout")
            )
            metrics["forget_privleak"] = privleak_metric(members, others, retrained=(theirs[0], theirs[1]))
        metrics["forget_membership_auc"] = _auc(private["forget"], private["holdout"])
    if private["retain"] and private["holdout"]:
        metrics["retain_membership_auc"] = _auc(private["retain"], private["holdout"])
    return metrics


def _auc(members: Sequence[Sample], others: Sequence[Sample]) -> Metric:
    return auc_metric([s.scores["min_k"] for s in members], [s.scores["min_k"] for s in others])


def _tokens(tokenizer: Any, text: str) -> list[int]:
    tokens = list(tokenizer(text)["input_ids"])
    if not tokens:
        raise UserError(f"muse: the text {text[:60]!r} has no tokens in this tokenizer")
    return tokens


def _check_room(model: Any, length: int, where: str) -> None:
    if length > context_length(model):
        raise UserError(
            f"{where}: {length} tokens, prompt and answer, but the model's context is {context_length(model)}; "
            "MUSE can't be scored on this model as it is defined"
        )
