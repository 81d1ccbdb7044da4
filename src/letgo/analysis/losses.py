"""Forget and retain loss over some rows: as numbers, and as terms that can be differentiated."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from letgo.benchmarks.engine.base import Benchmark
from letgo.core.errors import EmptyScoreError, UserError
from letgo.data.encode import IGNORE, Encoded, Template
from letgo.data.pairs import pad_rows
from letgo.metrics.summary import perplexity_metric
from letgo.models.load import context_length
from letgo.models.running import evaluating
from letgo.objectives.likelihood import sequence_logps
from letgo.runs.results import Metric, Metrics

LossTerm = Callable[[], Tensor]
T = TypeVar("T")
TOKEN_BUDGET = 2048
_CHOICE_SEED = 20261121


def evenly(things: Sequence[T], most: int | None) -> list[T]:
    """At most `most` things, one from each of as many stretches of equal length, always the same ones.

    A generator draws which one of a stretch: with regular distances, data in which kinds of things take turns would
    give one kind alone.
    """
    if most is not None and most < 1:
        raise UserError(f"limit must be at least 1, not {most}")
    if most is None or len(things) <= most:
        return list(things)
    chooser, count = random.Random(_CHOICE_SEED), len(things)
    return [things[chooser.randrange(i * count // most, (i + 1) * count // most)] for i in range(most)]


@dataclass(frozen=True)
class _Set:
    rows: list[Encoded]
    batches: list[list[int]]
    """Indices of `rows`: rows of like length together."""
    tokens: list[int]
    """Label tokens of each row."""


class RowLosses:
    """Mean cross-entropy per label token, in nats, over some of a benchmark's forget and retain rows.

    ℓ(θ) = −Σ_rows Σ_t log π_θ(y_t | x, y_<t) / Σ_rows |y|: the attacker's and the retain set's own loss
    (`letgo.objectives.retain.cross_entropy`), whatever objective the model was unlearned with.

    Args:
        model, tokenizer: give the context length and the tokens; any model of the tokenizer can be measured.
        benchmark, template: whose rows, and how questions become prompts.
        limit: at most so many rows of each set, evenly spaced; None for all.
        token_budget: most tokens in a batch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        benchmark: Benchmark,
        *,
        template: Template,
        limit: int | None,
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self.pad_id = tokenizer.pad_token_id
        self.sets: dict[str, _Set] = {}
        for name, rows in (("forget_loss", benchmark.forget), ("retain_loss", benchmark.retain)):
            if not rows:
                continue
            encoded, _ = benchmark.encode(
                tokenizer,
                evenly(rows, limit),
                template=template,
                max_length=context_length(model),
                long_rows="cut",
                name=name.replace("_loss", " set"),
            )
            tokens = [sum(label != IGNORE for label in row.labels[1:]) for row in encoded]
            self.sets[name] = _Set(encoded, _batches(encoded, token_budget), tokens)
        if not self.sets:
            raise EmptyScoreError(f"benchmark {benchmark.name!r} has no rows to take a loss over")

    @property
    def rows(self) -> dict[str, int]:
        return {name: len(rows.rows) for name, rows in self.sets.items()}

    def values(self, model: Any) -> dict[str, float | None]:
        """Each set's loss; None where it is not finite."""
        values: dict[str, float | None] = {}
        for name, rows in self.sets.items():
            loss = -math.fsum(self._row_sums(model, rows)) / sum(rows.tokens)
            values[name] = loss if math.isfinite(loss) else None
        return values

    def metrics(self, model: Any) -> Metrics:
        """Each set's loss with its number of rows and an interval over groups; a `NonFiniteLossError` where it is not
        finite."""
        metrics: Metrics = {}
        for name, rows in self.sets.items():
            sums = self._row_sums(model, rows)
            loss = -math.fsum(sums) / sum(rows.tokens)
            # The loss is the logarithm of a perplexity, and so are the bounds of its interval.
            interval = (float("nan"), float("nan"))
            if math.isfinite(loss):
                groups = [row.row.group for row in rows.rows]
                interval = perplexity_metric(sums, rows.tokens, groups).ci95
            low, high = (math.log(bound) if bound > 0 else 0.0 for bound in interval)
            metrics[name] = Metric(value=loss, n=len(rows.rows), ci95=(low, high))
        return metrics

    def parts(self, model: Any, name: str) -> Iterator[tuple[list[Encoded], dict[str, Tensor]]]:
        """A set's rows a batch at a time, with their tensors on the model's device."""
        rows = self.sets[name]
        for batch in rows.batches:
            yield [rows.rows[index] for index in batch], self._tensors(model, rows, batch)

    def terms(self, model: Any, name: str) -> list[LossTerm]:
        """Functions whose values sum to a set's loss, one a batch, each with its gradient."""
        rows = self.sets[name]
        total = sum(rows.tokens)

        def term(batch: Sequence[int]) -> LossTerm:
            return lambda: -sequence_logps(model, self._tensors(model, rows, batch)).sum() / total

        return [term(batch) for batch in rows.batches]

    def _row_sums(self, model: Any, rows: _Set) -> list[float]:
        sums = [0.0] * len(rows.rows)
        with evaluating(model):
            for batch in rows.batches:
                logps = sequence_logps(model, self._tensors(model, rows, batch))
                for index, value in zip(batch, logps.double().tolist(), strict=True):
                    sums[index] = value
        return sums

    def _tensors(self, model: Any, rows: _Set, batch: Sequence[int]) -> dict[str, Tensor]:
        device = next(model.parameters()).device
        return {k: v.to(device) for k, v in pad_rows([rows.rows[i] for i in batch], self.pad_id).items()}


def smaller_benchmark(benchmark: Benchmark, limit: int | None, sets: Sequence[str] = ("forget", "retain")) -> Benchmark:
    """The benchmark with at most `limit` items of each of some sets and `limit` general texts, evenly spaced."""
    items = [item for name in sets for item in evenly([i for i in benchmark.items if i.set == name], limit)]
    texts = evenly([text for text in benchmark.texts if text.set == "general"], limit)
    return replace(benchmark, items=items, texts=texts)


def gradient(terms: Sequence[LossTerm], parameters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """A sum of terms and its gradient, a term's graph at a time."""
    total, sums = 0.0, [torch.zeros_like(p) for p in parameters]
    for term in terms:
        value = term()
        total += float(value.detach())
        for running, slope in zip(sums, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
            if slope is not None:
                running += slope
    return total, sums


def _batches(rows: Sequence[Encoded], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batches and (len(batches[-1]) + 1) * len(rows[index]) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
