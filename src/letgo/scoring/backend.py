"""Where scoring runs is a backend: a model in memory (`letgo.scoring.in_memory`), or a server (`letgo.scoring.server`).

`letgo.scoring.scoring` is what callers use; it hands all that they ask to the model's backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from letgo.scoring.decoding import Generation
from letgo.scoring.head import Scores, Wanted
from letgo.scoring.resume_log import ResumeLog, content_key
from letgo.scoring.sampling import Sampling


@dataclass(frozen=True)
class Query:
    """A prefix and the continuations to score after it, as token ids. The prefix must not be empty."""

    prefix: Sequence[int]
    continuations: Sequence[Sequence[int]]


def query_key(query: Query, wanted: Wanted) -> str:
    """The key of a query's scores in a log."""
    prefix, continuations = list(map(int, query.prefix)), [list(map(int, c)) for c in query.continuations]
    return content_key("score", prefix, continuations, [wanted.statistics, wanted.matches])


@runtime_checkable
class Backend(Protocol):
    """What a caller may ask of a model, wherever it runs.

    Attributes:
        gives_logps: whether it scores given continuations; else it only writes answers.
        has_weights: whether the weights are at hand: for whole distributions (Min-K++), gradients, other libraries.
    """

    gives_logps: bool
    has_weights: bool

    def score(
        self,
        queries: Sequence[Query],
        wanted: Wanted,
        *,
        token_budget: int | None,
        advance: Callable[[int], None],
        log: ResumeLog | None,
    ) -> list[list[Scores]]:
        """As `letgo.scoring.scoring.score`, of queries that are whole."""
        ...

    def generate(
        self,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None,
        samples: int,
        stop: Sequence[str],
        clean_up: bool | None,
        token_budget: int | None,
        advance: Callable[[int], None],
        log: ResumeLog | None,
    ) -> list[list[Generation]]:
        """As `letgo.scoring.scoring.generate`."""
        ...

    def answers(self, prompt: Sequence[int]) -> bool:
        """Whether it can be asked to go on from this prompt."""
        ...
