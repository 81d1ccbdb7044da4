"""The one result schema: a run directory's `result.json`, written whole or not at all."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from letgo.core.catalog import format_spec
from letgo.core.errors import EmptyScoreError, NonFiniteLossError, UserError
from letgo.core.files import read_json, write_json

SCHEMA = 1
RESULT_FILE = "result.json"
SAMPLES_FILE = "samples.jsonl"
HISTORY_FILE = "history.jsonl"
CONFIG_FILE = "config.yaml"

EVALUATION = "eval-"
"""What the ids of evaluations begin with."""

TRAINED_ROWS = "trained rows"
"""What `config.scored.on` says where the forget metrics are of the rows trained on: else "paraphrases", or a file."""
ON_TRAINED_ROWS = "scored on the rows that were trained on"
"""The note that says so."""

Status = Literal["finished", "collapsed", "failed"]

__all__ = ["AttackResult", "Metric", "Metrics", "Result"]


class Strict(BaseModel):
    """A part of a schema: with these fields alone, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


Document = TypeVar("Document", bound=Strict)


class Metric(Strict):
    """A value over `n` samples with its 95 % interval. Zero samples or a value that is not finite raise."""

    value: float
    n: int
    ci95: tuple[float, float]

    def model_post_init(self, _: Any) -> None:
        if not math.isfinite(self.value):
            raise NonFiniteLossError(f"a metric came out as {self.value}")
        if self.n < 1:
            raise EmptyScoreError("a metric over zero samples is not a score")


Metrics = dict[str, Metric]


class AttackResult(Strict):
    """What one attack did to the model, and how much of the forgetting it left.

    `kept` is the share of the forgetting that is still there after the attack, 0…1, the smallest over the benchmark's
    headline metrics (`attacks/engine/judge.py`); `survived` compares it with `threshold`. A model that had forgotten
    nothing, or that is broken after the attack (`collapsed`), has not survived.
    """

    name: str
    settings: dict[str, Any]
    seeds: list[int]
    metrics: Metrics
    kept: float = Field(ge=0.0, le=1.0)
    survived: bool
    threshold: float = 0.5
    collapsed: bool = False
    reasons: list[str] = []
    did: dict[str, Any] = {}
    """The attack's own figures: displacement, steps, rows used."""
    per_seed: list[dict[str, float]] = []
    baseline: dict[str, Metrics] = {}
    """`before` and `after` on the same rows, where the attack is judged on a part of them (held-out groups)."""
    part: str = "held-out rows"
    """What that part is called."""
    curve: list[dict[str, float]] = []
    """The first seed's course, a row a step; `curves` every seed's."""
    curves: list[list[dict[str, float]]] = []
    seconds: float = 0.0
    kept_ci95: tuple[float, float] | None = None
    """95 % interval of `kept` over groups and seeds."""
    judged_on: Literal["kept", "R"] = "kept"
    """R where the attacker had every row and the retrained model was attacked alike: what any model would learn from
    the attacker's data does then not count against this one."""
    scores: dict[str, float] = {}
    """R of a relearning attack, Q of a quantization (`attacks/engine/outcome.py`)."""
    utility: dict[str, Metrics] = {}
    """What the model is good for, `before` and `after` this attack."""
    utility_loss: float | None = None
    """The largest relative loss of it by the attack; the mean over seeds."""
    layers: list[dict[str, Any]] = []
    """For each layer the attack's displacement beside that of unlearning."""
    ways: list[dict[str, Any]] = []
    """Of an attack by prompts: each way of asking, and what it left."""
    trials: list[dict[str, Any]] = []
    """Of a search: every setting tried, what it left, and what it cost."""

    @property
    def label(self) -> str:
        return format_spec(self.name, self.settings)


class Result(Strict):
    """One run, schema 1. `before` and `after` are the model's metrics before and after unlearning; `references` holds
    other models measured the same way (the model retrained without the forget set, where it is known)."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    run_id: str
    created: str
    letgo: str
    versions: dict[str, str]
    git: str | None
    seed: int
    config: dict[str, Any]
    status: Status
    reasons: list[str] = []
    """Why the run is called collapsed or failed."""
    before: Metrics = {}
    after: Metrics = {}
    references: dict[str, Metrics] = {}
    headlines: dict[str, float] = {}
    """The metrics by which forgetting is judged, each with what a model that knows nothing scores. Empty in records of
    older versions."""
    attacks: list[AttackResult] = []
    robustness: dict[str, float] = {}
    """R, Q and their harmonic mean over the attacks made (`attacks/engine/outcome.py`)."""
    notes: list[str] = []
    seconds: dict[str, float] = {}
    peak_memory_bytes: dict[str, int] = {}
    processes: dict[str, Any] = {}
    """Where several trained together: how many, what each held, and the bytes that they exchanged."""

    @property
    def evaluation(self) -> bool:
        """Whether a model was only scored (`letgo eval`), and nothing unlearned."""
        return self.run_id.startswith(EVALUATION)

    @property
    def total_seconds(self) -> float:
        """All that the run took: its own total if it names one."""
        return self.seconds.get("total", sum(self.seconds.values()))

    def with_attacks(self, attacks: Iterable[AttackResult]) -> Result:
        """The same result with attacks added; an attack with the same label takes the older one's place."""
        merged = {attack.label: attack for attack in self.attacks}
        merged.update((attack.label, attack) for attack in attacks)
        return self.model_copy(update={"attacks": list(merged.values())})


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def new_run_id(created: str, prefix: str = "") -> str:
    """An id of a run made at a time as `now` writes it: sortable, and unlike any other."""
    return f"{prefix}{created.replace(':', '').replace('+0000', 'Z')}-{uuid.uuid4().hex[:6]}"


def check_unused(output: Path | None) -> None:
    """Raise a `UserError` unless an output directory is still to be made, or empty."""
    if output is None or not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"output {output} is a file; name a directory")
    if any(output.iterdir()):
        raise UserError(f"output directory {output} is not empty; name another one")


def write_result(directory: Path, result: Result) -> Path:
    """Write `result.json` whole; returns its path."""
    path = directory / RESULT_FILE
    write_json(path, result.model_dump(mode="json", by_alias=True))
    return path


def is_run(directory: Path) -> bool:
    return (directory / RESULT_FILE).is_file()


def read_result(directory: Path) -> Result:
    """Read a run directory's result; a missing, broken or newer one is a `UserError`."""
    if not is_run(directory):
        raise UserError(f"{directory} is not a run directory: it has no {RESULT_FILE}")
    return read_document(directory / RESULT_FILE, Result, SCHEMA)


def read_document(path: Path, model: type[Document], schema: int) -> Document:
    """Read a JSON file of a versioned schema; a broken one, or one of another version, is a `UserError`."""
    raw = read_json(path)
    version = raw.get("schema") if isinstance(raw, dict) else None
    if version != schema:
        raise UserError(
            f"{path}: schema {version!r}, but this letgo reads schema {schema}"
            + ("; it was written by a newer letgo: upgrade" if isinstance(version, int) and version > schema else "")
        )
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: field {field!r}: {first['msg']} (got {first['input']!r})") from error
