"""Texts that a model is to go on with: does it write the true continuation word for word?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from letgo.benchmarks.engine.base import Benchmark, checked_limit
from letgo.benchmarks.engine.items import Item, Sample, answer_tokens, asked_sample, limited
from letgo.benchmarks.engine.questions import texts_part
from letgo.benchmarks.engine.requests import Advance, Answers, Ask, ScoredQueries, Work, joined
from letgo.core.errors import UserError
from letgo.core.fingerprints import digest_of
from letgo.data.encode import Template, encode_prompt, resolve_template, target_text
from letgo.metrics.memorization import exact_match, probability, rouge_l_f1, rouge_l_recall
from letgo.scoring.scoring import Query


def continuations_part(
    tokenizer: Any,
    items: Sequence[Item],
    form: Literal["plain", "chat"],
    *,
    least: int = 0,
    stop: tuple[str, ...] = (),
) -> Work:
    """Each item's target, and what the model writes in its place: greedily, as many tokens as the target has (and at
    least `least`), cut at `stop`. Scores: `probability` of the target, `exact_match`, `rouge` (ROUGE-L recall, stemmed)
    and `verbmem` (ROUGE-L F1 × 100, not stemmed, as MUSE has it) of what was written."""
    queries, asks = [], []
    for item in items:
        prompt = encode_prompt(tokenizer, item.row, form)
        if not prompt:
            raise UserError(f"{item.row.where}: the prompt has no tokens in this tokenizer")
        true = answer_tokens(tokenizer, target_text(item.row, form), item.row.where)
        queries.append(Query(prompt, [true]))
        asks.append(Ask(prompt, max(len(true), least), stop))

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        samples = []
        for item, ask, given, written in zip(items, asks, scored, answers, strict=True):
            truth, scores = item.row.target, dict[str, float]()
            if given:
                scores["probability"] = probability(given[0].logps)
            if written:
                text = written[0].text
                scores |= {"exact_match": exact_match(truth, text), "rouge": rouge_l_recall(truth, text)}
                scores["verbmem"] = 100.0 * rouge_l_f1(truth, text)
            if scores:
                text = written[0].text if written else ""
                samples.append(asked_sample(item, scores, text, digest_of(list(ask.prompt), truth)))
        return samples

    return Work(finish, queries, asks, partial=True)


@dataclass(frozen=True)
class Continued(Benchmark):
    """A benchmark whose items are all to be gone on with, as `continuations_part` does it."""

    least: int = 0
    stop: tuple[str, ...] = ()

    def work(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        form = resolve_template(tokenizer, self.template_for(template))
        items, texts = limited(self.items, checked_limit(limit)), limited(self.texts, limit)
        asked = continuations_part(tokenizer, items, form, least=self.least, stop=self.stop)
        return joined([asked, texts_part(tokenizer, texts)])
