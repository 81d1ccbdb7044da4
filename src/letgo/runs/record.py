"""One run as the index knows it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from letgo.core.catalog import format_spec, links_of, parse_chain
from letgo.core.errors import UserError
from letgo.core.files import damaged, read_json, write_text
from letgo.optim import OPTIMIZERS
from letgo.runs.results import AttackResult, Outcome, Result, Settings, Word, read_result

TAGS_FILE = "tags.json"
"""A run's own tags, in its directory, so that they move with it and survive a rebuild."""

ROBUSTNESS_TAG = "robustness-test"
_SHARED = {"run_id", "created", "status", "seed", "letgo", "git", "versions", "config"}
"""Fields that a record has as the result has them."""
_TAG = re.compile(r"[\w][\w.:@/+-]*")


_ALWAYS_UNLIKE = ("id", "path", "created", "seconds", "peak_memory", "tags", "letgo")
"""Fields in which no two runs are alike, or that are shown elsewhere."""

Rows = list[tuple[str, Any, Any]]
"""Field, its value in the first run and in the second; None where a run has no such field."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class AttackSummary(_Model):
    """What the index holds of an attack on a run."""

    name: str
    settings: dict[str, Any]
    kept: float | None
    survived: bool
    outcome: Outcome

    @property
    def label(self) -> str:
        return format_spec(self.name, self.settings)


class RunRecord(_Model):
    """What the index holds of a run: all that queries, lists and comparisons of runs read. `path` is its directory as
    seen from the index's root; `stages` has the metrics' values before and after unlearning and of each reference."""

    path: str
    run_id: str
    created: str
    status: str
    seed: int
    letgo: str
    git: str | None
    versions: dict[str, str]
    config: Settings
    stages: dict[str, dict[str, float]]
    attacks: tuple[AttackSummary, ...]
    seconds: float
    peak_memory: int | None
    kind: str
    """unlearn, eval or audit."""
    word: Word | None
    """Whether it forgot, as the record's judgement has it."""
    headlines: tuple[str, ...]
    """The metrics by which forgetting is judged."""
    subjects: int | None
    revealed: int | None
    """How many subjects there are, and of how many something is given away; None where that was not measured."""
    own_tags: tuple[str, ...]

    @classmethod
    def of(cls, path: str, result: Result, own_tags: tuple[str, ...] = ()) -> RunRecord:
        """The record of a run's result. `own_tags` are those that a user gave it."""
        stages = {"before": result.before, "after": result.after, **result.references}
        people = result.judgement.subjects if result.judgement else None
        return cls(
            path=path,
            **result.model_dump(include=_SHARED),
            stages={stage: {name: metric.value for name, metric in values.items()} for stage, values in stages.items()},
            attacks=tuple(AttackSummary.model_validate(attack, from_attributes=True) for attack in result.attacks),
            seconds=float(result.total_seconds),
            peak_memory=max(result.peak_memory_bytes.values(), default=None),
            kind=result.kind,
            word=result.judgement.word if result.judgement else None,
            headlines=tuple(result.headlines),
            subjects=people.of if people else None,
            revealed=len(people.worst) if people else None,
            own_tags=own_tags,
        )

    @classmethod
    def read(cls, directory: Path, root: Path) -> RunRecord:
        """Read a run directory; a broken one, or one of a newer schema, is a `UserError`."""
        return cls.of(relative(directory, root), read_result(directory), read_tags(directory))

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def tags(self) -> tuple[str, ...]:
        """The user's tags and those that follow from the result: `robustness-test` where it was attacked, and for
        each attack `survived:LABEL` or `failed:LABEL`; an attack under which nobody can tell gives none of the two."""
        derived = [ROBUSTNESS_TAG] if self.attacks else []
        told = [attack for attack in self.attacks if attack.outcome != "can't tell"]
        derived += [f"{'survived' if attack.survived else 'failed'}:{attack.label}" for attack in told]
        if self.status != "finished":
            derived.append(self.status)
        return tuple(dict.fromkeys([*self.own_tags, *derived]))

    @property
    def kept(self) -> dict[str, float]:
        """What each attack left, by a query's name for it."""
        return {f"kept({attack.label})": attack.kept for attack in self.attacks if attack.kept is not None}

    def judged_metrics(self, name: str) -> tuple[str, ...]:
        """The metrics after unlearning of a set (forget, retain) by which forgetting and its cost are judged: the
        headlines' counterparts in that set. Nothing for what is no set."""
        after = self.stages["after"]
        wanted = [headline.replace("forget_", f"{name}_", 1) for headline in self.headlines]
        return tuple(metric for metric in wanted if metric in after and metric.startswith(f"{name}_"))

    @property
    def grade(self) -> str | None:
        """The optimizer's grade; None where there was none, or one that this letgo does not know."""
        name = self.config.get("optimizer")
        if self.kind == "eval" or not name or name not in OPTIMIZERS:
            return None
        return str(OPTIMIZERS.record(name).grade)

    @property
    def batch_size(self) -> int | None:
        """Forget rows an optimizer step takes on one device."""
        size = self.config.get("per_device_train_batch_size")
        return None if size is None else size * (self.config.get("gradient_accumulation_steps") or 1)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """What is shown of a run in a line: the fields that every run has."""
        return {
            "id": self.run_id,
            "path": self.path,
            "kind": self.kind,
            "created": self.created,
            "status": self.status,
            "verdict": self.word,
            "subjects": self.subjects,
            "subjects_revealed": self.revealed,
            # Of a model that was only attacked or audited, that one, not the one before unlearning.
            "model": self.config.get("unlearned") or self.config.get("model"),
            "data": self.config.get("benchmark") or self.config.get("forget"),
            "objective": None if self.kind == "eval" else self.config.get("objective"),
            "optimizer": None if self.kind == "eval" else self.config.get("optimizer"),
            "grade": self.grade,
            "learning_rate": self.config.get("learning_rate"),
            "zo_lr": (self.config.get("optimizer_args") or {}).get("zo_lr"),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "peak_memory": self.peak_memory,
            "letgo": self.letgo,
            "tags": list(self.tags),
        }


def attack_matches(attack: AttackSummary | AttackResult, pattern: str) -> bool:
    """Whether a pattern names an attack: "relearn", "quantize:bits=4" (these settings, whatever the others),
    "quantize4" (a number that one of its settings has) or "*". Of a chain each link is named so: "relearn then
    quantize4"; "*" names chains too."""
    name, settings = parse_chain(pattern)
    if attack.label == pattern or (name, settings) == ("*", {}):
        return True
    made, wanted = links_of(attack.name, attack.settings), links_of(name, settings)
    return len(made) == len(wanted) and all(map(_link_matches, made, wanted))


def _link_matches(made: tuple[str, Mapping[str, Any]], wanted: tuple[str, Mapping[str, Any]]) -> bool:
    (name, settings), (pattern, asked) = made, wanted
    if fnmatch.fnmatchcase(name, pattern):
        return all(settings.get(key) == value for key, value in asked.items())
    short = None if asked else re.fullmatch(r"(.*?[a-z_])(\d+(?:\.\d+)?)", pattern)
    numbers = [v for v in settings.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    return short is not None and name == short[1] and float(short[2]) in numbers


def relative(directory: Path, root: Path) -> str:
    """A run's path as the index keeps it: below the root where it lies there, so that the whole folder can be moved."""
    path = Path(os.path.relpath(directory.resolve(), root.resolve())).as_posix()
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path!r} can't be recorded: its name is not UTF-8; rename it") from error
    return path


def read_tags(directory: Path) -> tuple[str, ...]:
    path = directory / TAGS_FILE
    if not os.path.lexists(path):
        return ()
    tags = read_json(path)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise damaged(path, "not a list of words")
    return tuple(tags)


def write_tags(directory: Path, tags: tuple[str, ...]) -> None:
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise UserError(f"tag {tag!r}: a tag is one word of letters, digits and . _ : @ / + -")
    write_text(directory / TAGS_FILE, json.dumps(list(tags), ensure_ascii=False) + "\n")


def difference(first: RunRecord, second: RunRecord) -> Rows:
    """What differs between two runs: first the settings, then versions, then metrics, then what was kept after each
    attack."""
    rows = _differ(first.fields, second.fields, skip=_ALWAYS_UNLIKE)
    names = [name for name, _, _ in rows]
    rows += _differ(_flattened(first.config), _flattened(second.config), skip=("output_dir", *names))
    rows += _differ(first.versions, second.versions, prefix="version of ")
    rows += _differ({"git": first.git}, {"git": second.git})
    for stage in dict.fromkeys([*first.stages, *second.stages]):
        rows += _differ(first.stages.get(stage, {}), second.stages.get(stage, {}), prefix=f"{stage}.")
    return rows + _differ(first.kept, second.kept)


def _differ(first: Mapping[str, Any], second: Mapping[str, Any], *, skip: Sequence[str] = (), prefix: str = "") -> Rows:
    names = [name for name in dict.fromkeys([*first, *second]) if name not in skip]
    rows = [(prefix + name, first.get(name), second.get(name)) for name in names]
    return [(name, before, after) for name, before, after in rows if before != after]


def _flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat
