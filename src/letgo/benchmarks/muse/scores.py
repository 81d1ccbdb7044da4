"""MUSE's scores, each with the benchmark's own prompt, length and cut, and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from letgo.benchmarks.engine.items import Item, Sample, Text, asked_sample
from letgo.benchmarks.engine.questions import MIN_K, means, of_set
from letgo.benchmarks.engine.reference import ReferenceResult
from letgo.benchmarks.engine.requests import Advance, Answers, Ask, ScoredQueries, Work
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.metrics.composite import privleak_metric
from letgo.metrics.memorization import rouge_l_f1
from letgo.metrics.privacy import loss_score, min_k
from letgo.metrics.summary import auc_metric
from letgo.models.load import context_length
from letgo.runs.results import Metrics
from letgo.scoring.scoring import text_query

VERBATIM_TOKENS = 128
KNOWLEDGE_TOKENS = 32
KNOWLEDGE_STOPS = ("\n\n", "\nQuestion", "Question:")


def verbatim_part(model: Any, tokenizer: Any, items: Sequence[Item]) -> Work:
    """VerbMem: 128 tokens of greedy continuation against as many of the text itself, ROUGE-L F1 × 100."""
    prompts = [_tokens(tokenizer, str(item.row.context)) for item in items]
    texts = []
    for item, prompt in zip(items, prompts, strict=True):
        _check_room(model, len(prompt) + VERBATIM_TOKENS, item.row.where)
        # The benchmark counts a start token among the 128 of the true text.
        true = _tokens(tokenizer, item.row.target)[:VERBATIM_TOKENS]
        texts.append(tokenizer.decode(true, skip_special_tokens=True, clean_up_tokenization_spaces=True))
        if not texts[-1].strip():
            raise UserError(f"{item.row.where}: the true text {item.row.target[:60]!r} has no tokens to compare with")

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        return [
            asked_sample(item, {"verbmem": 100.0 * rouge_l_f1(text, answer.text)}, answer.text, digest_of(prompt, text))
            for item, prompt, text, [answer] in zip(items, prompts, texts, answers, strict=True)
        ]

    return Work(finish, asks=[Ask(prompt, VERBATIM_TOKENS, clean_up=True) for prompt in prompts])


def knowledge_part(model: Any, tokenizer: Any, items: Sequence[Item], examples: Sequence[tuple[str, str]]) -> Work:
    """KnowMem: an answer of 32 greedy tokens after ten worked examples, cut at the next question; ROUGE-L F1 × 100."""
    before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in examples)
    prompts = [_tokens(tokenizer, f"{before}Question: {item.row.context}\nAnswer: ") for item in items]
    for item, prompt in zip(items, prompts, strict=True):
        _check_room(model, len(prompt) + KNOWLEDGE_TOKENS, item.row.where)

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        samples = []
        for item, [answer] in zip(items, answers, strict=True):
            scores = {"knowmem": 100.0 * rouge_l_f1(item.row.target, answer.text)}
            digest = digest_of(before, item.row.context, item.row.target)
            samples.append(asked_sample(item, scores, answer.text, digest))
        return samples

    return Work(finish, asks=[Ask(prompt, KNOWLEDGE_TOKENS, KNOWLEDGE_STOPS, clean_up=True) for prompt in prompts])


def privacy_part(model: Any, tokenizer: Any, texts: Sequence[Text]) -> Work:
    """PrivLeak's scores: the mean of the 40 % least likely tokens' log-probabilities of each whole text."""
    queries = []
    for text in texts:
        tokens = _tokens(tokenizer, text.text)
        if len(tokens) < 4:
            raise UserError(f"muse {text.id}: a text of {len(tokens)} tokens is too short for Min-{MIN_K:.0%}")
        _check_room(model, len(tokens), f"muse {text.id}")
        queries.append(text_query(tokens))

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        samples = []
        for text, [tokens] in zip(texts, scored, strict=True):
            scores = {"min_k": min_k(tokens.logps, MIN_K), "loss": -loss_score(tokens.logps)}
            samples.append(Sample(text.set, text.id, text.group, scores, digest=digest_of(text.text)))
        return samples

    return Work(finish, queries)


def muse_metrics(samples: Sequence[Sample], retrained_auc: float, reference: ReferenceResult | None) -> Metrics:
    """MUSE's metrics of samples. `retrained_auc` serves where there is no `reference`."""
    metrics = means(of_set(samples, "forget"), "forget", ("verbmem", "knowmem"))
    metrics |= means(of_set(samples, "retain"), "retain", ("knowmem",))
    rated = [s for s in samples if "min_k" in s.scores]
    sets = {name: of_set(rated, name) for name in ("forget", "retain", "holdout")}
    forget, retain, holdout = ([s.scores["min_k"] for s in members] for members in sets.values())
    if forget and holdout:
        if reference is None:
            metrics["forget_privleak"] = privleak_metric(forget, holdout, retrained_auc=retrained_auc)
        else:
            theirs = [[score for _, score in reference.matched(sets[n], "min_k")] for n in ("forget", "holdout")]
            metrics["forget_privleak"] = privleak_metric(forget, holdout, retrained=(theirs[0], theirs[1]))
        metrics["forget_membership_auc"] = auc_metric(forget, holdout)
    if retain and holdout:
        metrics["retain_membership_auc"] = auc_metric(retain, holdout)
    return metrics


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
