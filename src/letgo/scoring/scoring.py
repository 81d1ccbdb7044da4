"""The one scorer: log-probabilities of given continuations, and answers, for every measurement.

Where it runs is a backend (`backend`): torch, for a model in memory (`in_memory`), or a server that is asked over HTTP
(`server`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from letgo.models.running import evaluating
from letgo.scoring.backend import Backend, Query
from letgo.scoring.decoding import Generation
from letgo.scoring.head import Scores, Wanted
from letgo.scoring.in_memory import InMemory
from letgo.scoring.resume_log import ResumeLog
from letgo.scoring.sampling import Sampling

__all__ = [
    "Backend",
    "Generation",
    "Query",
    "ResumeLog",
    "Sampling",
    "Scores",
    "backend_of",
    "continuation_logps",
    "evaluating",
    "generate",
    "score",
    "text_query",
]


def text_query(tokens: Sequence[int]) -> Query:
    """A whole text, scored from its second token on; after a start token (BOS) that is the text itself."""
    if len(tokens) < 2:
        raise ValueError("a text needs at least two tokens, of which the first (BOS) is given")
    return Query(tokens[:1], [tokens[1:]])


def continuation_logps(
    model: Any,
    queries: Sequence[Query],
    *,
    token_budget: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    log: ResumeLog | None = None,
) -> list[list[Tensor]]:
    """The log-probabilities of `score` alone; same arguments and errors."""
    scored = score(model, queries, token_budget=token_budget, advance=advance, log=log)
    return [[scores.logps for scores in row] for row in scored]


def score(
    model: Any,
    queries: Sequence[Query],
    *,
    statistics: bool = False,
    matches: bool = False,
    token_budget: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    log: ResumeLog | None = None,
) -> list[list[Scores]]:
    """Score every token of every continuation, given its prefix and the tokens before it.

    Args:
        model: a causal LM of transformers, or a backend.
        queries: what to score; each has a prefix of at least one token.
        statistics: also the vocabulary's mean and deviation at each position (Min-K++).
        matches: also whether each token is the likeliest (exact memorization, extraction strength).
        token_budget: most tokens of a batch (one row may exceed it by itself); by default what suits the device.
        advance: called with the number of queries done; they sum up to all of them.
        log: keeps finished queries, and has them again after a kill. A run that goes on forms the same batches, and so
            gives the same bits, as one that was never stopped.

    In a run of several processes each scores a part of the queries, and all get all scores.

    Returns:
        For each query, for each continuation, its `Scores`.

    Raises:
        ValueError: for an empty prefix or continuation.
        UserError: a text is longer than the model's table of positions.
        NonFiniteLossError: if a score comes out NaN or infinite.
    """
    for query in queries:
        if not len(query.prefix) or not query.continuations or not all(len(c) for c in query.continuations):
            raise ValueError("a query needs a prefix and continuations of at least one token")
    return backend_of(model).score(
        queries, Wanted(statistics, matches), token_budget=token_budget, advance=advance, log=log
    )


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    sampling: Sampling | None = None,
    samples: int = 1,
    stop: Sequence[str] = (),
    clean_up: bool | None = None,
    token_budget: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    log: ResumeLog | None = None,
) -> list[list[Generation]]:
    """Answers to token prompts by the model's backend; arguments and errors of `letgo.scoring.generation.generate`."""
    return backend_of(model).generate(
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        samples=samples,
        stop=stop,
        clean_up=clean_up,
        token_budget=token_budget,
        advance=advance,
        log=log,
    )


def backend_of(model: Any) -> Backend:
    """Where a model runs: a backend is its own, any other model is one in memory."""
    return model if isinstance(model, Backend) else InMemory(model)
