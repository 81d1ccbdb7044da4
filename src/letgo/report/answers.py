"""The same questions answered by each model: before, after, and after each attack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LONGEST = 600
"""Characters of an answer that are shown."""


@dataclass(frozen=True)
class ShownAnswer:
    """What one model wrote, and its scores on the question."""

    text: str | None
    accuracy: float | None
    probability: float | None
    seen: bool = False
    """Whether the attacker trained on what the question is about."""


@dataclass
class ShownQuestion:
    """A question, its right answer, and each stage's own answer."""

    identifier: str
    group: str
    question: str
    expected: str
    answers: dict[str, ShownAnswer] = field(default_factory=dict)


def collect(samples: Iterable[Mapping[str, Any]], which: str) -> tuple[list[str], list[ShownQuestion]]:
    """Stages (before, after, references, attacks) and questions of one set. Questions that an attacker trained on come
    last: the others say more. Of an attack with several seeds the first one is taken; a question without generated text
    in any stage is left out."""
    questions: dict[str, ShownQuestion] = {}
    seeds: dict[str, Any] = {}
    for row in samples:
        if row.get("set") != which or not row.get("question"):
            continue
        stage, identifier = str(row.get("stage")), str(row.get("id"))
        if seeds.setdefault(stage, row.get("seed")) != row.get("seed"):
            continue
        if identifier not in questions:
            group, expected = str(row.get("group", "")), str(row.get("answer") or "")
            questions[identifier] = ShownQuestion(identifier, group, str(row["question"]), expected)
        scores, text = row.get("scores") or {}, row.get("generated")
        questions[identifier].answers[stage] = ShownAnswer(
            None if text is None else str(text),
            scores.get("accuracy"),
            scores.get("probability"),
            bool(row.get("seen")),
        )
    shown = [q for q in questions.values() if any(answer.text is not None for answer in q.answers.values())]
    shown.sort(key=lambda question: any(answer.seen for answer in question.answers.values()))
    with_text = {stage for q in shown for stage, answer in q.answers.items() if answer.text is not None}
    order = {"before": 0, "after": 1, "reference": 2}
    stages = [stage for stage in seeds if stage in with_text]
    return sorted(stages, key=lambda stage: order.get(stage.partition(":")[0], 3)), shown


def stage_title(stage: str) -> str:
    """ "attack:quantize:bits=4" as "after quantize:bits=4"."""
    kind, _, name = stage.partition(":")
    return {"attack": f"after {name}", "reference": f"{name} reference"}.get(kind, stage)


def cut(text: str, longest: int = LONGEST) -> str:
    """The text, its tail replaced by a count where it is longer than `longest` characters."""
    left = len(text) - longest
    return text if left <= 0 else f"{text[:longest]}… ({left:,} more characters)"


def marked(text: str, expected: str) -> list[tuple[str, bool]]:
    """The text in pieces; true for those that are the expected answer itself, upper and lower case alike."""
    wanted = expected.strip().rstrip(".").strip()
    if not wanted:
        return [(text, False)]
    pieces = re.split(f"((?<!\\w){re.escape(wanted)}(?!\\w))", text, flags=re.IGNORECASE)
    return [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]
