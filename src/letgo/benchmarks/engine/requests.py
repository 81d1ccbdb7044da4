"""What benchmarks ask of a model, so that one pass over it answers several of them.

A benchmark says what it needs (log-probabilities of continuations, greedy answers) and how it makes samples of that.
Then everything is run together: batched by length, and each distinct query once, whichever benchmarks ask it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from letgo.benchmarks.engine.items import Sample
from letgo.core.errors import UserError
from letgo.scoring.generation import most_generated_tokens
from letgo.scoring.in_memory import most_scored_tokens
from letgo.scoring.scoring import Backend, Generation, Query, ResumeLog, Sampling, Scores, generate, score
from letgo.scoring.server.calibration import calibrate
from letgo.scoring.server.served import Served


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


ScoredQueries = list[list[Scores]]
"""For each query, in order, the scores of each of its continuations."""
Answers = list[list[Generation]]
"""For each ask, in order, its answers."""
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Work:
    """What a benchmark, or a part of it, needs of one model.

    Attributes:
        finish: makes the samples, given the scores, the answers, and a function to report further steps. A benchmark
            that scores by other means (another library, a classifier, gradients) does so here.
        queries, asks: what the engine runs.
        statistics, matches: what to score beside log-probabilities (see `letgo.scoring.scoring.score`).
        steps: the further steps that `finish` reports.
        weights: whether `finish` runs the model itself (gradients, another library).
        partial: whether `finish` can do with less than all: an empty list in the place of scores, or of answers, that
            a server can't give.
        parts: the works that this one joins.
    """

    finish: Callable[[ScoredQueries, Answers, Advance], list[Sample]]
    queries: Sequence[Query] = ()
    asks: Sequence[Ask] = ()
    statistics: bool = False
    matches: bool = False
    steps: int = 0
    weights: bool = False
    partial: bool = False
    parts: Sequence[Work] = ()

    @property
    def size(self) -> int:
        return len(self.queries) + len(self.asks) + self.steps


def joined(works: Sequence[Work]) -> Work:
    """Several works as one; their samples follow each other in the works' order."""

    def finish(scored: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        samples, query, ask = [], 0, 0
        for work in works:
            of_queries, of_asks = scored[query : query + len(work.queries)], answers[ask : ask + len(work.asks)]
            samples += work.finish(of_queries, of_asks, advance)
            query, ask = query + len(work.queries), ask + len(work.asks)
        return samples

    return Work(
        finish,
        [query for work in works for query in work.queries],
        [ask for work in works for ask in work.asks],
        statistics=any(work.statistics for work in works),
        matches=any(work.matches for work in works),
        steps=sum(work.steps for work in works),
        weights=any(work.weights for work in works),
        parts=works,
    )


def within(work: Work, backend: Backend) -> Work | None:
    """As much of a work as a backend can do; None where that is nothing.

    A server may give no log-probabilities, or answer messages alone. Parts that need more are left out.
    """
    if work.parts:
        parts = [able for part in work.parts if (able := within(part, backend)) is not None]
        return joined(parts) if sum(part.size for part in parts) else None
    scored = not work.queries or backend.gives_logps
    answered = [backend.answers(ask.prompt) for ask in work.asks]
    if not backend.has_weights and (work.weights or work.statistics):
        return None
    if scored and all(answered):
        return work
    if not work.partial or not (any(answered) or (scored and work.queries)):
        return None

    def finish(scores: ScoredQueries, answers: Answers, advance: Advance) -> list[Sample]:
        given = iter(answers)
        every = [next(given) if able else [] for able in answered]
        return work.finish(scores if scored else [[] for _ in work.queries], every, advance)

    asks = [ask for ask, able in zip(work.asks, answered, strict=True) if able]
    return replace(work, finish=finish, queries=work.queries if scored else (), asks=asks)


def asked_of(name: str, work: Work, backend: Backend) -> Work:
    """A work as far as a backend can do it.

    Args:
        name: the benchmark's, for the message.

    Raises:
        UserError: nothing of it can be measured there.
    """
    able = work if backend.has_weights else within(work, backend)
    if able is not None:
        return able
    needs = []
    if work.queries and not backend.gives_logps:
        needs.append("log-probabilities of given answers")
    if work.weights or work.statistics:
        needs.append("the weights")
    if not all(backend.answers(ask.prompt) for ask in work.asks):
        needs.append("texts that are continued (or, of questions, --template chat)")
    raise UserError(
        f"benchmark {name!r} can't be asked of {backend}: it needs {' and '.join(needs)}\n"
        "  docs/served.md says what each kind of server can be asked; with the weights at hand, give their directory"
    )


def run_works(
    model: Any,
    tokenizer: Any,
    works: Sequence[Work],
    *,
    advance: Advance = lambda _: None,
    log: ResumeLog | None = None,
) -> list[list[Sample]]:
    """The samples of each work. Equal queries and asks of different works are run once.

    Args:
        model, tokenizer: of the model to be scored.
        works: what the benchmarks need.
        advance: called with the number of steps done; they sum up to the works' sizes.
        log: keeps finished queries and asks, and has them again after a kill.
    """
    queries = {_query_key(query): query for work in works for query in work.queries}
    asks = {_ask_key(ask): ask for work in works for ask in work.asks}
    advance(sum(len(work.queries) + len(work.asks) for work in works) - len(queries) - len(asks))
    rows = score(
        model,
        list(queries.values()),
        statistics=any(work.statistics for work in works),
        matches=any(work.matches for work in works),
        advance=advance,
        log=log,
    )
    scored = dict(zip(queries, rows, strict=True))
    answers: dict[Hashable, list[Generation]] = {}
    for manner, alike in _by_manner(asks).items():
        stop, clean_up, sampling, samples = manner
        generated = generate(
            model,
            tokenizer,
            [ask.prompt for ask in alike.values()],
            max_new_tokens=[ask.max_new_tokens for ask in alike.values()],
            stop=stop,
            clean_up=clean_up,
            sampling=sampling,
            samples=samples,
            advance=advance,
            log=log,
        )
        answers |= dict(zip(alike, generated, strict=True))
    return [
        work.finish(
            [scored[_query_key(query)] for query in work.queries],
            [answers[_ask_key(ask)] for ask in work.asks],
            advance,
        )
        for work in works
    ]


def calibrated(model: Served, works: Sequence[Work], weights: str, dtype: str, log: ResumeLog | None) -> dict[str, Any]:
    """How far a server's answers to some of what the works ask are from those of the weights that it is said to serve
    (`letgo.scoring.server.calibration.calibrate`), for the record."""

    def make() -> dict[str, Any]:
        queries = [query for work in works for query in work.queries]
        asks = [(ask.prompt, ask.max_new_tokens) for work in works for ask in work.asks if ask.sampling is None]
        return calibrate(model, weights, queries, asks, dtype)

    return make() if log is None else log.value(f"calibration {weights} {dtype}", make)


def most_tokens(work: Work, scoring_budget: int, generation_budget: int) -> int:
    """The most tokens, padding too, that a work runs through a model that takes a query's continuations as one tree.

    Args:
        scoring_budget, generation_budget: tokens of a batch (`letgo.models.running`).
    """
    queries = {_query_key(query): query for query in work.queries}
    asked = _by_manner({_ask_key(ask): ask for ask in work.asks})
    return most_scored_tokens(list(queries.values()), scoring_budget) + sum(
        most_generated_tokens([(ask.prompt, ask.max_new_tokens) for ask in alike.values()], samples, generation_budget)
        for (*_, samples), alike in asked.items()
    )


def _by_manner(asks: Mapping[Hashable, Ask]) -> dict[tuple[Any, ...], dict[Hashable, Ask]]:
    groups: dict[tuple[Any, ...], dict[Hashable, Ask]] = {}
    for key, ask in asks.items():
        groups.setdefault(ask.manner, {})[key] = ask
    return groups


def _query_key(query: Query) -> Hashable:
    return tuple(query.prefix), tuple(map(tuple, query.continuations))


def _ask_key(ask: Ask) -> Hashable:
    return tuple(ask.prompt), ask.max_new_tokens, ask.manner
