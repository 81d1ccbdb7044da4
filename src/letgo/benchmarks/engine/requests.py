"""What benchmarks ask of a model, so that several can be answered in one pass over it.

A benchmark says what it needs (log-probabilities of continuations, greedy answers) and how samples are made of it. All
that is asked is then run together: batched by length, and each distinct query once, whichever benchmark asked it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from letgo.benchmarks.engine.items import Sample
from letgo.scoring.scoring import Generation, Query, ResumeLog, Sampling, Scores, generate, score


@dataclass(frozen=True)
class Ask:
    """A prompt, as token ids, to be continued by at most `max_new_tokens` tokens: greedily, or `samples` times by
    `sampling`; cut before the first `stop` string. `clean_up` is the decoding's `clean_up_tokenization_spaces`."""

    prompt: Sequence[int]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    clean_up: bool | None = None
    sampling: Sampling | None = None
    samples: int = 1

    @property
    def manner(self) -> tuple[Any, ...]:
        """All but the prompt and its room: asks of one manner run together."""
        return (self.stop, self.clean_up, self.sampling, self.samples)


Finish = Callable[[list[list[Scores]], list[list[Generation]], Callable[[int], None]], list[Sample]]


@dataclass(frozen=True)
class Work:
    """What one benchmark needs of one model.

    Attributes:
        finish: makes the samples. It is given the `Scores` of each continuation of each query, then the answers to
            each ask, all in their order, and a function to report steps of its own. A benchmark that scores by other
            means (another library, a classifier, gradients) does so here.
        queries, asks: what the engine is to run.
        statistics, matches: what is to be scored beside log-probabilities (see `letgo.scoring.scoring.score`).
        steps: what `finish` adds to the progress by itself.
    """

    finish: Finish
    queries: Sequence[Query] = ()
    asks: Sequence[Ask] = ()
    statistics: bool = False
    matches: bool = False
    steps: int = 0

    @property
    def size(self) -> int:
        return len(self.queries) + len(self.asks) + self.steps


@dataclass
class _Pool:
    """Distinct things to run, and where each asker finds its own."""

    things: list[Any] = field(default_factory=list)
    places: dict[Hashable, int] = field(default_factory=dict)

    def add(self, key: Hashable, thing: Any) -> int:
        if key not in self.places:
            self.places[key] = len(self.things)
            self.things.append(thing)
        return self.places[key]


def run_works(
    model: Any,
    tokenizer: Any,
    works: Sequence[Work],
    *,
    advance: Callable[[int], None] = lambda _: None,
    log: ResumeLog | None = None,
) -> list[list[Sample]]:
    """The samples of each work. Equal queries and asks of different works are run once.

    Args:
        model, tokenizer: of the model to be scored.
        works: what the benchmarks need.
        advance: called with the number of steps done; they sum up to the works' sizes.
        log: where finished queries and asks are kept, and found again after a kill.
    """
    queries, asks = _Pool(), _Pool()
    asked_queries = [
        [queries.add((tuple(q.prefix), tuple(map(tuple, q.continuations))), q) for q in work.queries] for work in works
    ]
    asked = [[asks.add((tuple(a.prompt), a.max_new_tokens, a.manner), a) for a in work.asks] for work in works]
    advance(sum(len(work.queries) + len(work.asks) for work in works) - len(queries.things) - len(asks.things))
    scored = score(
        model,
        queries.things,
        statistics=any(work.statistics for work in works),
        matches=any(work.matches for work in works),
        advance=advance,
        log=log,
    )
    generated = _generated(model, tokenizer, asks.things, advance, log)
    return [
        work.finish([scored[i] for i in of_queries], [generated[i] for i in of_asks], advance)
        for work, of_queries, of_asks in zip(works, asked_queries, asked, strict=True)
    ]


def _generated(
    model: Any, tokenizer: Any, asks: Sequence[Ask], advance: Callable[[int], None], log: ResumeLog | None
) -> list[list[Generation]]:
    answers: list[list[Generation]] = [[] for _ in asks]
    for manner in dict.fromkeys(ask.manner for ask in asks):
        chosen = [index for index, ask in enumerate(asks) if ask.manner == manner]
        stop, clean_up, sampling, samples = manner
        found = generate(
            model,
            tokenizer,
            [asks[index].prompt for index in chosen],
            max_new_tokens=[asks[index].max_new_tokens for index in chosen],
            stop=stop,
            clean_up=clean_up,
            sampling=sampling,
            samples=samples,
            advance=advance,
            log=log,
        )
        for index, answer in zip(chosen, found, strict=True):
            answers[index] = answer
    return answers
