"""One run as the index knows it: its result, and what follows from it."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letgo.core.catalog import parse_spec
from letgo.core.errors import UserError
from letgo.core.files import write_text
from letgo.optim import OPTIMIZERS
from letgo.runs.results import AttackResult, Result, read_result

TAGS_FILE = "tags.json"
"""A run's own tags, in its directory, so that they move with it and survive a rebuild."""

ROBUSTNESS_TAG = "robustness-test"
_TAG = re.compile(r"[\w][\w.:@/+-]*")


@dataclass(frozen=True)
class RunRecord:
    """A run directory, its path below the index's root, its result, and the tags that a user gave it."""

    path: str
    result: Result
    own_tags: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path, root: Path) -> RunRecord:
        """Read a run directory; a broken one, or one of a newer schema, is a `UserError`."""
        return cls(relative(directory, root), read_result(directory), read_tags(directory))

    @property
    def run_id(self) -> str:
        return self.result.run_id

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def kind(self) -> str:
        """ "eval" for a model that was only scored, else "unlearn"."""
        return "eval" if self.result.evaluation else "unlearn"

    @property
    def tags(self) -> tuple[str, ...]:
        """The user's tags and those that follow from the result: `robustness-test` where it was attacked, and for
        each attack `survived:LABEL` or `failed:LABEL`."""
        attacks = self.result.attacks
        derived = [ROBUSTNESS_TAG] if attacks else []
        derived += [f"{'survived' if attack.survived else 'failed'}:{attack.label}" for attack in attacks]
        if self.result.status != "finished":
            derived.append(self.result.status)
        return tuple(dict.fromkeys([*self.own_tags, *derived]))

    @property
    def grade(self) -> str | None:
        """The optimizer's grade; None where there was none, or one that this letgo does not know."""
        name = self.result.config.get("optimizer")
        if self.kind == "eval" or not name or name not in OPTIMIZERS:
            return None
        return str(OPTIMIZERS.record(name).grade)

    @property
    def batch_size(self) -> int | None:
        """Forget rows an optimizer step takes on one device."""
        size = self.result.config.get("per_device_train_batch_size")
        return None if size is None else int(size) * int(self.result.config.get("gradient_accumulation_steps") or 1)

    @property
    def data(self) -> str | None:
        """What was to be forgotten: a benchmark's spec or a file."""
        return self.result.config.get("benchmark") or self.result.config.get("forget")

    @property
    def seconds(self) -> float:
        taken = self.result.seconds
        return float(taken.get("total", sum(taken.values())))

    @property
    def peak_memory(self) -> int | None:
        return max(self.result.peak_memory_bytes.values(), default=None)

    def attacks(self, pattern: str) -> list[AttackResult]:
        """The attacks that a pattern names: "relearn", "quantize:bits=4" (these settings, whatever the others),
        "quantize4" (a number that one of its settings has) or "*"."""
        return [attack for attack in self.result.attacks if attack_matches(attack, pattern)]

    def flat(self) -> dict[str, Any]:
        """What is shown of a run in a line: the fields that every run has."""
        config = self.result.config
        zo_lr = (config.get("optimizer_args") or {}).get("zo_lr")
        return {
            "id": self.run_id,
            "path": self.path,
            "kind": self.kind,
            "created": self.result.created,
            "status": self.result.status,
            "model": config.get("model"),
            "data": self.data,
            "objective": None if self.kind == "eval" else config.get("objective"),
            "optimizer": None if self.kind == "eval" else config.get("optimizer"),
            "grade": self.grade,
            "learning_rate": config.get("learning_rate"),
            "zo_lr": zo_lr,
            "batch_size": self.batch_size,
            "seed": self.result.seed,
            "seconds": round(self.seconds, 3),
            "peak_memory": self.peak_memory,
            "letgo": self.result.letgo,
            "tags": list(self.tags),
        }


def attack_matches(attack: AttackResult, pattern: str) -> bool:
    """Whether a pattern as in `RunRecord.attacks` names an attack."""
    name, settings = parse_spec(pattern)
    if settings:
        return fnmatch.fnmatchcase(attack.name, name) and all(
            attack.settings.get(key) == value for key, value in settings.items()
        )
    if fnmatch.fnmatchcase(attack.name, name) or attack.label == pattern:
        return True
    short = re.fullmatch(r"(.*?[a-z_])(\d+(?:\.\d+)?)", name)
    return bool(short) and attack.name == short[1] and float(short[2]) in _numbers(attack.settings)  # type: ignore[index]


def _numbers(settings: Mapping[str, Any]) -> Iterator[float]:
    for value in settings.values():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)


def relative(directory: Path, root: Path) -> str:
    """A run's path as the index keeps it: below the root where it lies there, so that the whole folder can be moved."""
    import os

    return Path(os.path.relpath(directory.resolve(), root.resolve())).as_posix()


def read_tags(directory: Path) -> tuple[str, ...]:
    path = directory / TAGS_FILE
    if not path.is_file():
        return ()
    try:
        tags = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f"{path}: must be a list of words")
    return tuple(tags)


def write_tags(directory: Path, tags: tuple[str, ...]) -> None:
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise UserError(f"tag {tag!r}: a tag is one word of letters, digits and . _ : @ / + -")
    write_text(directory / TAGS_FILE, json.dumps(list(tags), ensure_ascii=False) + "\n")
