"""What it means that a model reveals an answer: a yes or no for each question, from its scores or its words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from letgo.analysis.losses import evenly
from letgo.benchmarks.engine.base import Benchmark, Sample
from letgo.core.errors import EmptyScoreError, UserError
from letgo.data.encode import Template

_TEST = re.compile(r"\s*([a-z_0-9]+)\s*>=\s*([-+0-9.eE]+)\s*")
_WORDS = re.compile(r"\w+", re.UNICODE)


def says(generated: str, answer: str) -> bool:
    """Whether a text has the answer's words one after the other; case and punctuation aside."""
    wanted, words = (_WORDS.findall(text.casefold()) for text in (answer, generated))
    width = len(wanted)
    return bool(wanted) and any(words[i : i + width] == wanted for i in range(len(words) - width + 1))


@dataclass(frozen=True)
class Criterion:
    """What "reveals" means.

    Attributes:
        text: `choice` (of the answers offered the right one is likeliest), `greedy` (the greedy answer contains it),
            `SCORE>=T` (a question's own score), or `forget_METRIC>=T` (of all questions together).
        benchmark: the questions, with nothing in them that the criterion does not need.
        share: the part of the questions that must be revealed for the set to count as revealed.
        limit: for a benchmark whose questions are its own to choose.
    """

    text: str
    benchmark: Benchmark
    share: float
    limit: int | None = None

    @property
    def single(self) -> bool:
        """Whether questions are judged one by one."""
        return not self.text.startswith("forget_")

    def samples(self, model: Any, tokenizer: Any, template: Template) -> list[Sample]:
        """The forget set's questions under a model, always the same ones in the same order."""
        samples = self.benchmark.samples(model, tokenizer, limit=self.limit, template=template)
        return [sample for sample in samples if sample.set == "forget"]

    def outcomes(self, model: Any, tokenizer: Any, template: Template) -> list[bool]:
        """For each question, whether the model reveals it; of a metric of all, one yes or no."""
        return self.of(self.samples(model, tokenizer, template))

    def of(self, samples: Sequence[Sample]) -> list[bool]:
        """The same of samples already scored."""
        if not samples:
            raise EmptyScoreError(f"benchmark {self.benchmark.name!r} has no questions about its forget set")
        if self.text == "greedy":
            return [says(sample.generated, sample.answer) for sample in samples]
        name, threshold = ("accuracy", 1.0) if self.text == "choice" else parsed(self.text)
        if self.single:
            for sample in samples:
                if name not in sample.scores:
                    raise UserError(f"reveals: {sample.id} has no score {name!r}; it has {', '.join(sample.scores)}")
            return [sample.scores[name] >= threshold for sample in samples]
        metrics = self.benchmark.summarise(samples)
        if name not in metrics:
            raise UserError(f"reveals: no metric {name!r} here; known: {', '.join(metrics)}")
        return [metrics[name].value >= threshold]

    def together(self, outcomes: Sequence[bool]) -> bool:
        """Whether the set as a whole is revealed."""
        return sum(outcomes) >= self.share * len(outcomes) if self.single else outcomes[0]

    def in_words(self) -> str:
        if self.text == "choice":
            return "the right answer is likelier, per token, than the wrong ones offered"
        if self.text == "greedy":
            return "the greedy answer contains the right one"
        name, threshold = parsed(self.text)
        return f"its {name.replace('_', ' ')} is at least {threshold:g}"

    def event(self, count: int) -> str:
        """What it is that the whole set of `count` questions is revealed."""
        if not self.single:
            return f"{self.in_words()} over these {count} questions"
        return f"at least {self.share * 100:.3g} % of these {count} questions are revealed"


def criterion_of(text: str, benchmark: Benchmark, *, limit: int | None, share: float) -> Criterion:
    """The criterion that a text means, with at most `limit` of the forget set's questions, evenly spaced.

    `auto` is `choice` where every question has wrong answers, else `greedy`. An unknown criterion, a choice without
    wrong answers and a share out of range are a `UserError`.
    """
    if not 0.0 < share <= 1.0:
        raise UserError(f"share must be above 0 and at most 1, not {share}")
    if text not in ("auto", "choice", "greedy"):
        parsed(text)
    forget = [item for item in benchmark.items if item.set == "forget"]
    if not forget:
        # A benchmark that asks in its own way is asked whole, as far as its limit goes.
        return Criterion("choice" if text == "auto" else text, benchmark, share, limit)
    items = evenly(forget, limit)
    with_choice = all(item.wrong for item in items)
    if text == "auto":
        text = "choice" if with_choice else "greedy"
    if text == "choice" and not with_choice:
        raise UserError(f"reveals: choice needs wrong answers, and benchmark {benchmark.name!r} has none: use greedy")
    generated: int | None = None
    if text == "choice":
        # One answer is generated nevertheless: a benchmark writes at least one.
        items, generated = [replace(item, paraphrase=None) for item in items], 1
    elif text == "greedy":
        items = [replace(item, wrong=(), paraphrase=None) for item in items]
    return Criterion(text, replace(benchmark, items=items, texts=(), generated=generated), share)


def parsed(text: str) -> tuple[str, float]:
    """Score and threshold of "NAME>=T"."""
    match = _TEST.fullmatch(text)
    if match:
        with contextlib.suppress(ValueError):
            return match[1], float(match[2])
    raise UserError(
        f"reveals: {text!r} is not known; give auto, choice, greedy, SCORE>=T (such as rouge>=0.5) or "
        "forget_METRIC>=T (such as forget_accuracy>=0.5)"
    )
