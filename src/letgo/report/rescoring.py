"""A recorded model scored anew, and held against what its record says: to the bit where the arithmetic is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.attacks.engine.target import open_targets
from letgo.core.environment import circumstances
from letgo.core.errors import UserError
from letgo.core.progress import Reporter
from letgo.models.load import load_model, load_tokenizer
from letgo.runs.results import Metrics, Result, read_samples

SAME_BITS = ("torch", "transformers", "processor", "device")
"""Versions and hardware under which scores come out to the same bits (docs/reproducibility.md)."""
TOLERANCE: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}
"""Elsewhere, by the weights' type: how far a score may be off, absolutely up to 1 and relatively above."""
OFF = 0.05
"""Elsewhere: the share of samples that may be further off. Where two words are as likely, a written answer takes
another turn."""
METRIC_OFF = 0.02
"""Elsewhere: how far a metric may be off, likewise."""
_IN_ONE_PASS = "evaluated in one pass with"


@dataclass(frozen=True)
class Rescored:
    """What scoring anew came to: the problems (none where it agrees), how it was compared, over how many samples."""

    problems: list[str]
    how: str
    samples: int


def rescore(directory: Path, place: Path, result: Result, reporter: Reporter) -> Rescored:
    """Score the model of a record anew, on the record's own questions.

    Args:
        place: where the model's files are.

    Raises:
        UserError: the record has no samples to compare with; the model or the data can't be read.
    """
    recorded = {_key(row): row for row in read_samples(directory) if row["stage"] == "after"}
    if not recorded:
        raise UserError(f"{directory} has no samples of the model as it is: there is nothing to compare with")
    [target] = open_targets([directory], purpose="score", reporter=reporter)
    model, tokenizer = load_model(place, dtype=target.dtype), load_tokenizer(place)
    samples = target.samples(model, tokenizer, "scoring anew")
    now = {_key(row): row for row in (sample.as_row("after", 0) for sample in samples)}
    why = other_arithmetic(result)
    problems = compared(recorded, now, 0.0 if not why else TOLERANCE.get(target.dtype, 2e-2))
    problems += _metrics(result.after, target.benchmark.summarise(samples), 0.0 if not why else METRIC_OFF)
    return Rescored(problems, f"within the tolerance ({why})" if why else "to the bit", len(recorded))


def other_arithmetic(result: Result) -> str:
    """Why scores need not come out to the recorded bits here; "" where they must."""
    here = circumstances()["versions"]
    others = [name for name in SAME_BITS if result.versions.get(name) != here.get(name)]
    if others:
        name = others[0]
        return f"recorded with {name} {result.versions.get(name, 'unknown')}, here {here.get(name)}"
    if result.processes:
        return "recorded by several processes"
    if any(note.startswith(_IN_ONE_PASS) for note in result.notes):
        return "recorded in one pass with other benchmarks"
    return ""


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["set"], row["id"]


def compared(
    recorded: Mapping[tuple[str, str], Mapping[str, Any]], now: Mapping[tuple[str, str], Mapping[str, Any]], most: float
) -> list[str]:
    """What differs between two scorings: other questions, or scores that are off.

    Args:
        most: how far a score may be off; 0 for not by a bit, in any sample.
    """
    if lost := [key for key in recorded if key not in now]:
        return [f"{len(lost)} recorded samples are of no question that there is, such as {'/'.join(lost[0])}"]
    if added := [key for key in now if key not in recorded]:
        return [f"{len(added)} questions have no recorded sample, such as {'/'.join(added[0])}"]
    asked = [key for key in recorded if _asked(recorded[key]) != _asked(now[key])]
    if asked:
        return [f"{len(asked)} recorded samples are of other questions or answers, such as {'/'.join(asked[0])}"]
    off = [key for key in recorded if _off(recorded[key], now[key], most)]
    if len(off) <= (OFF * len(recorded) if most else 0):
        return []
    first = off[0]
    scores = f"{dict(recorded[first]['scores'])}, now {dict(now[first]['scores'])}"
    return [f"{len(off)} of {len(recorded)} samples score otherwise than recorded, such as {'/'.join(first)}: {scores}"]


def _asked(row: Mapping[str, Any]) -> Sequence[Any]:
    return [row.get(name, "") for name in ("group", "question", "answer", "digest")]


def _off(recorded: Mapping[str, Any], now: Mapping[str, Any], most: float) -> bool:
    before, after = recorded["scores"], now["scores"]
    if before.keys() != after.keys() or (not most and recorded.get("generated") != now.get("generated")):
        return True
    return any(_far(before[name], after[name], most) for name in before)


def _far(before: float, after: float, most: float) -> bool:
    return abs(before - after) > most * max(1.0, abs(before))


def _metrics(recorded: Metrics, now: Metrics, most: float) -> list[str]:
    return [
        f"{name} is {now[name].value:.6g}, recorded as {metric.value:.6g}"
        if name in now
        else f"{name} is no metric of these samples"
        for name, metric in recorded.items()
        if name not in now or _far(metric.value, now[name].value, most)
    ]
