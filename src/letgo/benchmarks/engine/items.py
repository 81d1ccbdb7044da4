"""The pieces of a benchmark: questions and texts to score, and the sample that each gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letgo.core.errors import UserError
from letgo.data.encode import encode_target
from letgo.data.rows import Row

FEW = 24
"""Items of a set that a look at a model scores, while it is trained or attacked."""
FEW_TEXTS = 8
"""General texts of such a look."""
SetName = str
"""forget, retain, holdout, general; a benchmark may have more (TOFU: authors, facts).

trained: the forget rows as they were trained on, where the set forget asks in other words. control: facts that no model
knew."""


@dataclass(frozen=True)
class Item:
    """A question with its answer, and other answers to score.

    `wrong` answers make a choice; `paraphrase` with `wrong_paraphrases` (or `wrong`) a truth ratio. Items of one
    `group` stand or fall together. `task` is the way of asking where a benchmark asks one set in several ways (MUSE:
    verbmem and knowmem of the forget set).
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

    `digest`, where there is one, is a hash of everything that was scored: samples of one digest may be compared.
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
        row.update({k: v for k in _SHOWN if (v := getattr(self, k))})
        return row | {"scores": dict(self.scores)}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Sample:
        texts = {name: row.get(name, "") for name in _SHOWN}
        return Sample(set=row["set"], id=row["id"], group=row["group"], scores=row["scores"], **texts)


_SHOWN = ("question", "answer", "generated", "digest")
"""The fields of a sample that a line leaves out where they are empty."""


def asked_sample(item: Item, scores: Mapping[str, float], generated: str, digest: str) -> Sample:
    """The sample of an item that was asked as its row has it, with what was generated."""
    question, answer, written = str(item.row.context)[-400:], item.row.target[:400], generated.strip()[:1000]
    return Sample(item.set, item.id, item.group, scores, question, answer, written, digest)


def limited(things: Sequence[Any], limit: int | None) -> list[Any]:
    """The first `limit` of each set and task, in their order."""
    counts: Counter[tuple[str, str]] = Counter()
    chosen = []
    for thing in things:
        counts[thing.set, thing.task] += 1
        if limit is None or counts[thing.set, thing.task] <= limit:
            chosen.append(thing)
    return chosen


def few_of(things: Sequence[Any], most: int = FEW) -> list[Any]:
    """At most `most` items (or texts) of each set, in their order, for a look that is to be cheap.

    They are taken from one group of the set to the next, spread over all groups, and of each group another item, so
    that every way of asking has its turn.
    """
    chosen: set[int] = set()
    for name in dict.fromkeys(thing.set for thing in things):
        groups: dict[str, list[int]] = {}
        for index, thing in enumerate(things):
            if thing.set == name:
                groups.setdefault(thing.group, []).append(index)
        step = max(1.0, len(groups) / most)
        asked = [list(groups.values())[int(number * step)] for number in range(min(len(groups), most))]
        turns = [
            group[(number + turn) % len(group)]
            for turn in range(max(map(len, asked)))
            for number, group in enumerate(asked)
            if turn < len(group)
        ]
        chosen.update(turns[:most])
    return [thing for index, thing in enumerate(things) if index in chosen]


def answer_tokens(tokenizer: Any, text: str, where: str) -> list[int]:
    """The tokens of an answer; one without tokens can't be scored: a `UserError` that says where it stands."""
    tokens = encode_target(tokenizer, text)
    if not tokens:
        raise UserError(f"{where}: the answer {text!r} has no tokens in this tokenizer, so it can't be scored")
    return tokens


def shown(row: Row) -> str:
    """The end of a row's question, as much as a report shows."""
    if isinstance(row.context, str):
        return row.context[-400:]
    return row.context[-1][1][-400:] if row.context else ""
