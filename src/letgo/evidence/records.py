"""The result files: what tables and claims need of a sweep's runs, without weights and samples."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from letgo.core.errors import UserError
from letgo.core.files import write_text
from letgo.evidence.statistics import Estimate, estimate
from letgo.evidence.subjects import Subject, key_of, subject_of

SCHEMA = 1
METRICS = (
    "forget_accuracy",
    "forget_probability",
    "forget_rouge",
    "forget_truth_ratio",
    "forget_quality",
    "retain_accuracy",
    "retain_probability",
    "retain_rouge",
    "model_utility",
    "general_perplexity",
)
"""What is kept of a run's metrics."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Attacked(_Model):
    """One attack on one run. `R` is there for relearning attacks of which the retrained model was the measure."""

    kept: float
    kept_ci95: tuple[float, float] | None = None
    R: float | None = None
    collapsed: bool = False
    utility_loss: float | None = None
    metrics: dict[str, float] = {}


class Cell(_Model):
    """One run: a seed of a group, or a candidate of its tuning."""

    seed: int
    status: Literal["finished", "collapsed", "failed", "pending"]
    reason: str = ""
    run_id: str = ""
    learning_rate: float | None = None
    after: dict[str, float] = {}
    unlearn_seconds: float | None = None
    attacks: dict[str, Attacked] = {}
    robustness: dict[str, float] = {}
    """R, Q and their harmonic mean over the attacks that are not held back."""

    @property
    def broken(self) -> bool:
        return self.status in ("collapsed", "failed")


class Group(_Model):
    """One grade under one objective: the cells differ by their seed alone.

    `passes` are those of a whole run: "forward" counts every evaluation of the loss, "backward" those with a gradient.
    """

    objective: str
    optimizer: str
    settings: dict[str, Any] = {}
    grade: str
    learning_rate: float | None = None
    steps: int
    passes: dict[str, float]
    reached: bool | None = None
    trials: list[Cell] = []
    superseded: bool = False
    """Another rate of the same grade stands for it, for this one left the room that comparisons allow."""
    control: bool = False
    """Another rate of a grade that the ladder has too, for comparisons that name it."""
    verdicts: list[str] = []
    """Of the trials, in their order: reached, missed, collapsed or failed."""
    cells: list[Cell] = []

    @property
    def name(self) -> str:
        name = grade_name(self.optimizer, self.settings)
        return f"{name} at {self.learning_rate:g}" if self.superseded or self.control else name

    @property
    def name_for_as_many_steps(self) -> str:
        """Its name as that of the grade, where it was given other steps than the rest of its sweep."""
        return grade_name(self.optimizer, {key: one for key, one in self.settings.items() if key != "steps"})

    @property
    def plain(self) -> bool:
        """Whether it is a grade of the ladder: its settings are the ladder's, so that its name tells none."""
        return not self.control and "(" not in self.name

    @property
    def forward_equivalents(self) -> float:
        """A run's passes in forward passes, a backward pass counted as two."""
        return self.passes["forward"] + 2.0 * self.passes["backward"]

    @property
    def seconds(self) -> float | None:
        """Of a run's unlearning, the median over seeds."""
        found = list(self.values("seconds").values())
        return statistics.median(found) if found else None

    def estimate(self, measure: str) -> Estimate | None:
        """A measure's mean over seeds, with its interval; None where no seed has it."""
        return estimate(list(self.values(measure).values()))

    def values(self, measure: str) -> dict[int, float]:
        """A measure by seed; seeds without it are left out.

        "R", "Q", "harmonic_mean"; "after:METRIC"; "kept:ATTACK"; "R:ATTACK"; "seconds". Robustness of a run that
        collapsed is 0; an attack that broke a sound model proves nothing, and is left out.
        """
        found = {cell.seed: value(cell, measure) for cell in self.cells}
        return {seed: one for seed, one in found.items() if one is not None}


class Record(_Model):
    """A sweep's runs: what was run, how it was tuned, what came of it."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["tuning", "ladder", "ideas"]
    source: str
    """The grid's file, which makes the runs again."""
    sources: list[str] = []
    """Of a ladder that is put together of several files (`joined`), all of them."""
    git: str | None = None
    objective: str
    benchmark: str = "biographies"
    target: str | None = None
    bound: str | None = None
    before: dict[str, float] = {}
    retrained: dict[str, float] = {}
    supersedes: bool = False
    """Its groups take the place of those of the same name in other files, whose rate left the room (`Subject.room`)."""
    held_back: list[str] = []
    """Labels of the attacks that confirm, and take no part in R and Q."""
    missed: list[str] = []
    """Grades that missed the target in tuning, and were not run further."""
    groups: list[Group]

    @property
    def key(self) -> str:
        """What its ladder is kept under: the objective, and the benchmark where it is not the first."""
        return key_of(self.objective, self.benchmark)

    @property
    def subject(self) -> Subject:
        return subject_of(self.benchmark)

    def measure(self, name: str) -> str:
        """A measure that claims name, with this subject's attack: "kept:half" and "R:everything" with their labels.

        Where no retrained model is known, R under one attack is the share kept.
        """
        kind, _, attack = name.partition(":")
        labels = {"half": self.subject.half, "everything": self.subject.everything}
        if kind == "R" and not self.subject.retrained:
            kind = "kept"
        return f"{kind}:{labels[attack]}" if attack in labels else name

    def group(self, name: str) -> Group | None:
        return next((group for group in self.groups if group.name == name), None)

    @property
    def control(self) -> Group | None:
        """Adam at a rate that forgets as deeply as the others, where the ladder has it."""
        return next((group for group in self.groups if group.control), None)

    def attacks(self) -> list[str]:
        """The attacks' labels, in order of meeting."""
        return list(dict.fromkeys(label for g in self.groups for cell in g.cells for label in cell.attacks))


def value(cell: Cell, measure: str) -> float | None:
    """One cell's value of a measure (`Group.values`)."""
    kind, _, rest = measure.partition(":")
    if kind == "after":
        return cell.after.get(rest)
    if kind == "seconds":
        return cell.unlearn_seconds
    if cell.broken:
        return 0.0
    if kind in ("kept", "R") and rest:
        attacked = cell.attacks.get(rest)
        if attacked is None or attacked.collapsed:
            return None
        return attacked.kept if kind == "kept" else attacked.R
    return cell.robustness.get(kind)


_NAMES = {
    "adamw": "AdamW",
    "sophia": "Sophia",
    "muon": "Muon",
    "sign_adam": "SignAdam",
    "sign_sgd": "SignSGD",
    "sam": "SAM",
    "randomized_smoothing": "RS",
    "ada_zo": "AdaZO",
    "zo_sgd": "ZO-SGD",
    "zo_muon": "ZO-Muon",
    "fozo": "FOZO",
}


# The ladders' own settings of an optimizer, one for each length of a run: what differs from them is told in its name.
_LADDER: dict[str, tuple[dict[str, Any], ...]] = {
    "fozo": (
        {"fo_steps": 12, "zo_steps": 12, "zo_lr": 3e-5},
        {"fo_steps": 6, "zo_steps": 6, "zo_lr": 6e-5},
        {"fo_steps": 5, "zo_steps": 5, "zo_lr": 3e-5},
        {"fo_steps": 15, "zo_steps": 15, "zo_lr": 3e-5},
    ),
    "sam": ({"rho": 0.05},),
    "randomized_smoothing": ({"sigma": 0.01, "num_draws": 2},),
}


def grade_name(optimizer: str, settings: Mapping[str, Any]) -> str:
    """What a group is called: "AdamW", "4-bit", "FOZO"; settings other than a ladder's stand behind it."""
    ladders = _LADDER.get(optimizer, ({},))
    known = next((one for one in ladders if one.items() <= dict(settings).items()), ladders[0])
    rest = {key: one for key, one in settings.items() if known.get(key) != one}
    if optimizer == "compressed":
        bits = rest.pop("bits", 8)
        name = f"{bits}-bit"
    else:
        name = _NAMES.get(optimizer, optimizer)
    return f"{name} ({', '.join(f'{key}={one}' for key, one in rest.items())})" if rest else name


def grade_of_run(directory: str) -> str:
    """The grade's name told from that of a sweep's run directory; a model's own name stays."""
    name = Path(directory).name.removeprefix("optimizer_")
    if name.startswith("compressed_bits_"):
        return f"{name.split('_')[2]}-bit"
    known = [key for key in _NAMES if name.startswith(key)]
    return _NAMES[max(known, key=len)] if known else name


def write_record(path: Path, record: Record) -> None:
    document = record.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"schema": SCHEMA}
    write_text(path, json.dumps(_rounded(document), ensure_ascii=False, indent=1) + "\n")


def read_record(path: Path) -> Record:
    """Read a result file; a broken one is a `UserError` that names it and the field."""
    try:
        return Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: field {'.'.join(map(str, first['loc']))!r}: {first['msg']}") from error


def joined(records: Sequence[Record]) -> Record:
    """Ladders of one objective: further seeds of the same groups put together. Superseded groups get names that say
    their rate, as controls have. Of records that supersede a later one (in the order given, which is that of their
    files' names) stands for an earlier one.

    Raises:
        UserError: the same group and seed stands in two of them, or a group with two rates.
    """
    groups: dict[str, Group] = {}
    for record in sorted(records, key=lambda one: one.supersedes):
        for group in record.groups:
            known = groups.get(group.name)
            if known is None:
                groups[group.name] = group
            elif (known.learning_rate, known.steps) == (group.learning_rate, group.steps):
                if twice := {c.seed for c in known.cells} & {c.seed for c in group.cells}:
                    raise UserError(f"{record.source}: {group.name} has seed {min(twice)} in another result file too")
                groups[group.name] = known.model_copy(update={"cells": [*known.cells, *group.cells]})
            elif record.supersedes:
                older = known.model_copy(update={"superseded": True})
                groups |= {older.name: older, group.name: group}
                # A rate that was left and is taken up again stands once, with the seeds that it had.
                again = groups.get(group.model_copy(update={"superseded": True}).name)
                if again is not None and again.superseded:
                    del groups[again.name]
                    new = {cell.seed for cell in group.cells}
                    cells = [*(cell for cell in again.cells if cell.seed not in new), *group.cells]
                    groups[group.name] = group.model_copy(update={"cells": cells})
            else:
                raise UserError(f"{record.source}: {group.name} was run with other settings in another result file")
    # The grid that the others add to: its name is the shortest.
    first = min(records, key=lambda one: (one.supersedes, len(one.source)))
    sources = [first.source, *(record.source for record in records if record is not first)]
    return first.model_copy(update={"groups": list(groups.values()), "sources": sources})


def _rounded(value: Any) -> Any:
    """Numbers to six significant digits: more are noise, and make files large."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
