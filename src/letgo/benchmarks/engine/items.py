"""The pieces of a benchmark: questions and texts to score, and what each scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.core.errors import UserError
from letgo.data.encode import encode_target
from letgo.data.rows import Row

SetName = str
"""forget, retain, holdout, general; a benchmark may have more (TOFU: authors, facts)."""


@dataclass(frozen=True)
class Item:
    """A question with its answer, and what else is to be scored of it.

    `wrong` answers make a choice; `paraphrase` with `wrong_paraphrases` (or `wrong`) a truth ratio. `group` names what
    stands or falls together. `task` tells apart what a benchmark asks of one set in several ways (MUSE: verbmem and
    knowmem of the forget set).
    """

    set: SetName
    id: str
    group: str
    row: Row
    wrong: tuple[str, ...] = ()
    paraphrase: str | None = None
    wrong_paraphrases: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True)
class Text:
    """A text to be scored as a whole: general prose for perplexity; forget and holdout texts for membership."""

    set: SetName
    id: str
    group: str
    text: str
    task: str = ""


@dataclass(frozen=True)
class Sample:
    """What one item or text scored under one model; a line of `samples.jsonl`.

    `digest`, where there is one, is a hash of all that was scored of the row: two samples of one digest may be held
    against each other.
    """

    set: str
    id: str
    group: str
    scores: Mapping[str, float]
    question: str = ""
    answer: str = ""
    generated: str = ""
    digest: str = ""

    def as_row(self, stage: str, seed: int) -> dict[str, Any]:
        row: dict[str, Any] = {"stage": stage, "seed": seed, "set": self.set, "id": self.id, "group": self.group}
        row.update({k: v for k in ("question", "answer", "generated", "digest") if (v := getattr(self, k))})
        return row | {"scores": dict(self.scores)}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Sample:
        return Sample(
            set=row["set"],
            id=row["id"],
            group=row["group"],
            scores=row["scores"],
            question=row.get("question", ""),
            answer=row.get("answer", ""),
            generated=row.get("generated", ""),
            digest=row.get("digest", ""),
        )


def limited(things: Sequence[Any], limit: int | None) -> list[Any]:
    """The first `limit` of each set and task, in their order."""
    counts: dict[tuple[str, str], int] = {}
    chosen = []
    for thing in things:
        key = (thing.set, thing.task)
        counts[key] = counts.get(key, 0) + 1
        if limit is None or counts[key] <= limit:
            chosen.append(thing)
    return chosen


def answer_tokens(tokenizer: Any, text: str, where: str) -> list[int]:
    """The tokens of an answer; one that has none can't be scored and is a `UserError` that names its place."""
    tokens = encode_target(tokenizer, text)
    if not tokens:
        raise UserError(f"{where}: the answer {text!r} has no tokens in this tokenizer, so it can't be scored")
    return tokens


def shown(row: Row) -> str:
    """The end of what a row asks, as far as a report shows it."""
    if isinstance(row.context, str):
        return row.context[-400:]
    return row.context[-1][1][-400:] if row.context else ""
