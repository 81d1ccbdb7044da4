"""Subject by subject: in which runs it is revealed, under which attack (as the records have it), and by which words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from letgo.metrics.judgement import gives_away
from letgo.report.numbers import number
from letgo.runs.results import Result

AFTER = "after"
RETRAINED = "reference:retrained"
MOST_QUOTED = 2
"""So many answers are quoted of one subject under one attack."""


@dataclass(frozen=True)
class Quote:
    """Words by which a subject is revealed: in run number `run`, what was asked and what came."""

    run: int
    stage: str
    question: str
    expected: str
    answer: str


@dataclass(frozen=True)
class Way:
    """How a subject is revealed: the unlearned model as it is, or under an attack; in which of the runs asked so."""

    stage: str
    runs: Sequence[int]
    asked: int
    quotes: Sequence[Quote]


@dataclass(frozen=True)
class Subject:
    name: str
    ways: Sequence[Way]

    @property
    def runs(self) -> int:
        """In how many runs it is revealed."""
        return len({run for way in self.ways for run in way.runs})


@dataclass
class Revealed:
    """What many runs reveal, gathered a run at a time, so that no two runs' samples are in memory at once."""

    _runs: dict[str, dict[str, list[int]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    _asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _quotes: dict[tuple[str, str], list[Quote]] = field(default_factory=lambda: defaultdict(list))

    def add(self, run: int, result: Result, samples: Sequence[Mapping[str, Any]]) -> None:
        judged = result.judgement.subjects if result.judgement else None
        if judged is None:
            return
        by_stage = {AFTER: judged.after} | {f"attack:{attack.label}": attack.revealed for attack in result.attacks}
        for stage, names in by_stage.items():
            self._asked[stage] += 1
            for name in names:
                self._runs[name][stage].append(run)
        wanted = {(name, stage) for stage, names in by_stage.items() for name in names}
        wanted = {key for key in wanted if len(self._quotes[key]) < MOST_QUOTED}
        if not wanted:
            return
        # What the retrained model answers too gives nobody away.
        known = {_row(sample) for sample in samples if sample.get("stage") == RETRAINED and _tells(sample)}
        for sample in samples:
            key = (str(sample.get("group")), str(sample.get("stage")))
            if key in wanted and not sample.get("seen") and _row(sample) not in known and _tells(sample):
                self._quotes[key].append(_quote(run, sample))
                wanted.discard(key)  # One of each run.

    def subjects(self) -> list[Subject]:
        """Those that some run reveals, those first that most runs do."""
        found = [
            Subject(
                name,
                [
                    Way(stage, runs, self._asked[stage], self._quotes.get((name, stage), ()))
                    for stage in self._asked
                    if (runs := by_stage.get(stage))
                ],
            )
            for name, by_stage in self._runs.items()
        ]
        return sorted(found, key=lambda subject: (-subject.runs, subject.name))


def _tells(sample: Mapping[str, Any]) -> bool:
    return gives_away(str(sample.get("set")), sample.get("scores") or {})


def _row(sample: Mapping[str, Any]) -> tuple[Any, Any]:
    return sample.get("set"), sample.get("id")


def _quote(run: int, sample: Mapping[str, Any]) -> Quote:
    scores, text = sample.get("scores") or {}, sample.get("generated")
    likely = f"(the right answer has probability {number(scores.get('probability'))})"
    return Quote(
        run,
        str(sample.get("stage")),
        str(sample.get("question") or sample.get("id")),
        str(sample.get("answer") or ""),
        str(text) if text else likely,
    )
