"""The result files: what tables and claims need of an experiment's runs, without weights and samples."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from letgo import UserError
from research.d2u.experiments import Testbed, read_testbed
from research.d2u.statistics import Estimate, estimate

SCHEMA = 2
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
"""The metrics of a run that are kept."""
_WIDTH = 500
"""What fits into so many characters stands on one line of a result file."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class AttackScore(_Model):
    """One attack on one run. `R` is there for relearning attacks that were made on the retrained model too."""

    kept: float
    kept_ci95: tuple[float, float] | None = None
    R: float | None = None
    collapsed: bool = False
    utility_loss: float | None = None
    metrics: dict[str, float] = {}


class SeedRun(_Model):
    """One run of a setting, on one seed."""

    seed: int
    status: Literal["finished", "collapsed", "failed"]
    reason: str = ""
    run_id: str = ""
    git: str | None = None
    after: dict[str, float] = {}
    unlearn_seconds: float | None = None
    attacks: dict[str, AttackScore] = {}
    robustness: dict[str, float] = {}
    """R, Q and their harmonic mean over the attacks that are not held back."""

    @property
    def broken(self) -> bool:
        return self.status != "finished"

    def value(self, measure: str) -> float | None:
        """A measure of this run (`Setting.values`)."""
        kind, _, rest = measure.partition(":")
        if kind == "after":
            return self.after.get(rest)
        if kind == "seconds":
            return self.unlearn_seconds
        if self.broken:
            return 0.0
        if kind in ("kept", "R") and rest:
            score = self.attacks.get(rest)
            if score is None or score.collapsed:
                return None
            return score.kept if kind == "kept" else score.R
        return self.robustness.get(kind)


class Trial(SeedRun):
    """One candidate rate of a tuning."""

    learning_rate: float
    verdict: Literal["reached", "missed", "collapsed", "failed"]
    chosen: bool = False


class _Named(_Model):
    name: str
    optimizer: str
    trainable: str | None = None
    steps: int


class Setting(_Named):
    """An optimizer at one rate; its runs differ by their seed alone.

    `passes` are those of a whole run: "forward" counts every evaluation of the loss, "backward" those with a gradient.
    """

    learning_rate: float
    passes: dict[str, float]
    superseded: bool = False
    """Another rate of the same name stands for it, since this one left the testbed's room."""
    control: bool = False
    """Another rate of a grade, for the comparisons that name it."""
    runs: list[SeedRun] = []
    repeats: list[SeedRun] = []
    """Runs on a seed that was run again later: kept, and read by nothing."""

    @property
    def label(self) -> str:
        """Its name, with the rate where another rate bears the name alone."""
        return f"{self.name} at {self.learning_rate:g}" if self.superseded or self.control else self.name

    @property
    def is_grade(self) -> bool:
        """Whether it is an optimizer with its plain settings: others name theirs in brackets."""
        return not self.control and "(" not in self.name

    @property
    def forward_equivalents(self) -> float:
        """A run's passes in forward passes; a backward pass counts as two."""
        return self.passes["forward"] + 2.0 * self.passes["backward"]

    @property
    def seconds(self) -> float | None:
        """The median time of unlearning over the seeds."""
        values = list(self.values("seconds").values())
        return statistics.median(values) if values else None

    def estimate(self, measure: str) -> Estimate | None:
        """A measure's mean over seeds, with its interval; None if no seed has it."""
        return estimate(list(self.values(measure).values()))

    def values(self, measure: str) -> dict[int, float]:
        """A measure by seed; seeds without it are left out.

        "R", "Q", "harmonic_mean"; "after:METRIC"; "kept:ATTACK"; "R:ATTACK"; "seconds". A run that collapsed has
        robustness 0; an attack that broke a sound model proves nothing, and is left out.
        """
        values = {run.seed: run.value(measure) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}


class Tuning(_Named):
    """The candidate rates of one setting, on the seed of the tuning."""

    eval_limit: int | None = None
    target: str
    bound: str
    trials: list[Trial] = []

    @property
    def reached(self) -> bool:
        return any(trial.verdict == "reached" for trial in self.trials)


class Record(_Model):
    """What came of one experiment."""

    schema_version: Literal[2] = Field(default=2, alias="schema")
    testbed: str
    objective: str
    before: dict[str, float] = {}
    retrained: dict[str, float] = {}
    held_back: list[str] = []
    """The labels of the attacks that take no part in R and Q."""
    settings: list[Setting] = []
    tuning: list[Tuning] = []

    @property
    def name(self) -> str:
        return f"{self.testbed}/{self.objective}"

    @property
    def bed(self) -> Testbed:
        return read_testbed(self.testbed)

    @property
    def control(self) -> Setting | None:
        """AdamW at a rate that forgets as deeply as others do, if there is one."""
        return next((setting for setting in self.settings if setting.control), None)

    @property
    def ideas(self) -> list[Setting]:
        return [setting for setting in self.settings if not setting.is_grade and not setting.control]

    def setting(self, label: str) -> Setting | None:
        return next((setting for setting in self.settings if setting.label == label), None)

    def missed(self, name: str) -> bool:
        """Whether a name was tuned, and no rate of it reached the target within the bound."""
        tunings = [tuning for tuning in self.tuning if tuning.name == name]
        return bool(tunings) and not any(tuning.reached for tuning in tunings)

    def measure(self, name: str) -> str:
        """A measure that claims name, with this testbed's attack: "kept:half" and "R:everything" with their labels.

        If no retrained model is known, R under one attack is the share kept.
        """
        kind, _, attack = name.partition(":")
        labels = {"half": self.bed.half, "everything": self.bed.everything}
        if attack not in labels:
            return name
        return f"{kind if self.bed.retrained else 'kept'}:{labels[attack]}"

    def attacks(self) -> list[str]:
        """The attacks' labels, in the order in which they appear."""
        runs = [run for setting in self.settings for run in setting.runs]
        return list(dict.fromkeys(label for run in runs for label in run.attacks))


def write_record(path: Path, record: Record) -> None:
    document = {"schema": SCHEMA, **record.model_dump(mode="json", by_alias=True, exclude_defaults=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_dumped(_rounded(document)) + "\n", encoding="utf-8")


def read_record(path: Path) -> Record:
    """Read a result file.

    Raises:
        UserError: it is broken; the message names the file and the field.
    """
    try:
        return Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: field {'.'.join(map(str, first['loc']))!r}: {first['msg']}") from error


def _rounded(value: Any) -> Any:
    """Numbers to six significant digits: more are noise, and make files large."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _dumped(value: Any, indent: str = "") -> str:
    """JSON that breaks lines only where a value is long."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) <= _WIDTH or not isinstance(value, dict | list):
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_dumped(entry, inner)}" for key, entry in value.items()]
        return f"{{\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}}}"
    return f"[\n{inner}" + f",\n{inner}".join(_dumped(entry, inner) for entry in value) + f"\n{indent}]"
