"""The one result schema: a run directory's `result.json`, written whole or not at all."""

from __future__ import annotations

import math
import os
import pkgutil
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from letgo.core.catalog import format_spec, parse_chain
from letgo.core.errors import EmptyScoreError, NonFiniteLossError, UserError
from letgo.core.files import read_json_lines, write_json
from letgo.core.locks import check_held
from letgo.runs.documents import read_document, validated
from letgo.runs.frames import check_table, metric_rows, table_of

SCHEMA = 2
"""2: `kept` and the words are taken between the attacked original and a model that never knew; in 1 between before and
after unlearning."""
RESULT_FILE = "result.json"
SAMPLES_FILE = "samples.jsonl"
HISTORY_FILE = "history.jsonl"
LIVE_FILE = "history.partial.jsonl"
"""The history of a run that is under way, a line for each logged step, for those who look on. Each line has the number
of steps in all (`of`) and the time (`at`, seconds since 1970)."""
CONFIG_FILE = "config.yaml"
STATEMENT_FILE = "attestation.json"
SIGNATURE_FILE = "attestation.sig"

EVALUATION = "eval-"
"""What the ids of evaluations begin with."""
AUDIT = "audit-"
"""What the ids of audits begin with."""

TRAINED_ROWS = "trained rows"
"""What `config.scored.on` says where the forget metrics are of the rows trained on: else "paraphrases", or a file."""
ON_TRAINED_ROWS = "scored on the rows that were trained on"
"""The note that says so."""

Status = Literal["finished", "collapsed", "failed"]
Word = Literal["nothing to forget", "not forgotten", "partly forgotten", "forgotten", "collapsed", "can't tell"]
"""`can't tell`: the model before unlearning is not known, so there are levels and no shares."""
Outcome = Literal["survived", "not survived", "can't tell", "collapsed"]
FloorOf = Literal["retrained", "control", "chance"]
"""Where the level of a model that never knew is taken from."""

__all__ = ["AttackResult", "Judgement", "Metric", "Metrics", "Result", "Share", "Subjects"]


class Strict(BaseModel):
    """A part of a schema: with these fields alone, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Shown(Strict):
    """A document that a notebook shows as a table and a figure.

    What draws it lies on the report's floor, above this one, and is found by its name when a notebook asks; so are the
    members of a catalog.
    """

    shown_by: ClassVar[str]

    def _repr_html_(self) -> str:
        return str(pkgutil.resolve_name(self.shown_by)(self))


def _spec(text: str) -> str:
    try:
        parse_chain(text)
    except UserError as error:
        raise ValueError(str(error)) from error
    return text


class _Settings(BaseModel):
    """Of a record's settings those that records are read by; all others are shown as they are."""

    model: str | None = None
    benchmark: str | None = None
    forget: str | None = None
    objective: str | None = None
    optimizer: str | None = None
    optimizer_args: dict[str, Any] | None = None
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    attacks: list[Annotated[str, AfterValidator(_spec)]] | None = None
    scored: dict[str, Any] | None = None


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    _Settings.model_validate(settings, strict=True)
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(_checked)]
"""A record's `config`."""


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


def hardest_first(kept: float | None) -> float:
    """A key to sort by what was kept: the least first, and where nobody can tell last."""
    return 2.0 if kept is None else kept


class Share(Strict):
    """Where the unlearned model stands, by one headline metric, between the original and a model that never knew.

    share = (original − unlearned) / (original − floor), over the same rows of all three, and all three under the same
    attack where there is one: 0 is the original's level, 1 that of a model that never knew, more is below it.
    """

    metric: str
    original: float
    unlearned: float
    floor: float
    floor_of: FloorOf
    """`retrained`: the retrained model's own score; `control`: that of facts no model knew; `chance`: guessing."""
    known: bool
    """Whether the original's score is above the floor by the whole of its interval; else there is no share."""
    overlap: bool = False
    """Whether the 95 % intervals of the original's and the unlearned model's score overlap."""
    groups: int
    share: float | None = None
    low: float | None = None
    """Ends of the 95 % interval over groups; None where a single sample gives none."""
    high: float | None = None
    bound: float | None = None
    """The one-sided 95 % lower bound."""


class Subjects(Strict):
    """Subjects (a person, a country, a document: the groups of the forget set) of which a model still gives something
    away: by their worst wording, and under whichever attack reveals them. Wordings that the retrained model answers too
    do not count, nor what an attacker was given."""

    of: int
    before: int | None
    """Revealed by the original; None where it is not known."""
    after: list[str]
    """Revealed by the unlearned model as it is."""
    worst: list[str]
    """Revealed by it or under some attack."""
    bound: float
    """One-sided 95 % upper bound of the share revealed (`worst` of `of`), by Clopper and Pearson."""


class Judgement(Strict):
    """Whether a run forgot: the word, the rule and the numbers that decided, and the target that they were held to."""

    word: Word
    why: str
    target: float
    shares: list[Share] = []
    subjects: Subjects | None = None


class AttackResult(Strict):
    """What one attack did to the model, and how much of the forgetting it left.

    `kept` is K = (s(A(O)) − s(A(U))) / (s(A(O)) − f) clipped to 0…1, the smallest over the benchmark's headlines: the
    attacked unlearned model between the attacked original and the attacked retrained model, or the floor
    (`metrics/judgement.py`). None where the attacked original itself no longer knows: then nobody can tell. `survived`
    holds the bound to the threshold. A model that is broken after the attack (`collapsed`) has not survived.
    """

    name: str
    settings: dict[str, Any]
    seeds: list[int]
    metrics: Metrics
    kept: float | None = Field(ge=0.0, le=1.0)
    survived: bool
    threshold: float = 0.5
    collapsed: bool = False
    why: str = ""
    """The rule and the numbers that decided on survival."""
    reasons: list[str] = []
    shares: list[Share] = []
    """What `kept` is made of, over all seeds."""
    bound: float | None = None
    """The one-sided 95 % lower bound of `kept` under the worst seed."""
    revealed: list[str] = []
    """Subjects that this attack reveals."""
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
    """95 % interval of `kept` over groups."""
    scores: dict[str, float] = {}
    """R of a relearning attack, Q of a quantization (`attacks/engine/outcome.py`)."""
    utility: dict[str, Metrics] = {}
    """What the model is good for, `before` and `after` this attack."""
    utility_loss: float | None = None
    """The largest relative loss of it by the attack; the mean over seeds."""
    layers: list[dict[str, Any]] = []
    """For each layer the attack's displacement beside that of unlearning."""
    links: list[dict[str, Any]] = []
    """Of a chain: each link (`attack`), and its own figures as in `did`. The curve has a look at what each left."""
    ways: list[dict[str, Any]] = []
    """Of an attack by prompts: each way of asking, and what it left."""
    trials: list[dict[str, Any]] = []
    """Of a search: every setting tried, what it left, and what it cost."""

    @property
    def label(self) -> str:
        return format_spec(self.name, self.settings)

    @property
    def order(self) -> float:
        """For sorting, the hardest attack first and one where nobody can tell last."""
        return hardest_first(self.kept)

    @property
    def outcome(self) -> Outcome:
        if self.collapsed:
            return "collapsed"
        if self.kept is None:
            return "can't tell"
        return "survived" if self.survived else "not survived"


class DataDigest(Strict):
    """A keyed digest of rows, in their order (`letgo.data.binding`)."""

    rows: int
    hmac_sha256: str


class Digests(Strict):
    """What a record speaks of: the SHA-256 of each file, by its name in its directory.

    A model's are those of its weights and its config; weights that are cut into other files have other digests. Empty
    where the files were not at hand (a served model, or none of this record's making).
    """

    base: dict[str, str] = {}
    """The model before unlearning; of a GGUF file that file."""
    model: dict[str, str] = {}
    tokenizer: dict[str, str] = {}
    data: dict[str, DataDigest] = {}
    """By set: forget, retain, control, and scored (what was asked)."""
    data_key: str | None = None
    """Which key the digests of the data are made with, but not the key."""


class CodeDigest(Strict):
    """Code that is not letgo's own and that a record was made with (`letgo.core.own.Code`)."""

    kind: str
    target: str
    sha256: str
    package: str = ""


class NotTried(Strict):
    """An attack that an audit's suite names and that was not made."""

    attack: str
    reason: str
    failed: bool = False
    """Whether it was begun and could not be finished; else it was left out beforehand."""


class Audit(Strict):
    """What an audit is of, and what was asked: a model as it was found, whoever made it."""

    model: str
    """As it was named."""
    kind: str
    """What that is: a directory, an adapter, a GGUF file, …"""
    weights: str
    """The fingerprint of its weights as they were loaded (`models.load.weights_fingerprint`); "" of a served model."""
    made_by: dict[str, str] = {}
    """What the model's own files say of who made it, and how; letgo has not checked it."""
    base: str | None = None
    """The model before unlearning; None where it is not known: then there are levels and no shares."""
    base_weights: str | None = None
    suite: str
    """"" where the attacks were named one by one (`letgo attack`)."""
    threshold: float
    attacks: list[str]
    """The attacks of the plan, in the order in which they are made."""
    budget: float | None = None
    """Seconds."""
    not_tried: list[NotTried] = []


class Result(Shown):
    """One run, schema 2. `before` and `after` are the model's metrics before and after unlearning; `references` holds
    other models measured the same way (the model retrained without the forget set, where it is known)."""

    shown_by = "letgo.report.notebook:html_of"

    schema_version: Literal[2] = Field(default=2, alias="schema")
    run_id: str
    created: str
    letgo: str
    versions: dict[str, str]
    git: str | None
    seed: int
    config: Settings
    status: Status
    reasons: list[str] = []
    """Why the run is called collapsed or failed."""
    before: Metrics = {}
    after: Metrics = {}
    references: dict[str, Metrics] = {}
    headlines: dict[str, float] = {}
    """The metrics by which forgetting is judged, each with what a model that knows nothing scores. Empty in records of
    older versions."""
    judgement: Judgement | None = None
    """Whether it forgot; None where nothing was measured before and after."""
    attacks: list[AttackResult] = []
    robustness: dict[str, float] = {}
    """R, Q and their harmonic mean over the attacks made (`attacks/engine/outcome.py`)."""
    notes: list[str] = []
    seconds: dict[str, float] = {}
    peak_memory_bytes: dict[str, int] = {}
    digests: Digests | None = None
    """None in records of older versions."""
    code: dict[str, CodeDigest] = {}
    """What was found by a path or an entry point, by its name in `config` or among the attacks: nothing that reads a
    record imports it."""
    processes: dict[str, Any] = {}
    """Where several trained together: how many, what each held, and the bytes that they exchanged."""
    audit: Audit | None = None
    """Of an audit: which model, and what was asked."""

    @property
    def code_digests(self) -> dict[str, str]:
        """The SHA-256 of each file of that code, for `letgo.core.own.expect`."""
        return {name: code.sha256 for name, code in self.code.items()}

    @property
    def without_original(self) -> bool:
        """Whether the model before unlearning was not known to the audit."""
        return self.audit is not None and self.audit.base is None

    @property
    def kind(self) -> Literal["unlearn", "eval", "audit"]:
        """What the record is of."""
        return "eval" if self.evaluation else "unlearn" if self.audit is None else "audit"

    @property
    def evaluation(self) -> bool:
        """Whether a model was only scored (`letgo eval`), and nothing unlearned."""
        return self.run_id.startswith(EVALUATION)

    @property
    def total_seconds(self) -> float:
        """All that the run and its attacks took: its own total if it names one."""
        # An audit's stages have its attacks among them.
        attacks = 0.0 if "attacks" in self.seconds else sum(attack.seconds for attack in self.attacks)
        return self.seconds.get("total", sum(self.seconds.values()) + attacks)

    def with_attacks(self, attacks: Iterable[AttackResult]) -> Result:
        """The same result with attacks added; an attack with the same label takes the older one's place."""
        merged = {attack.label: attack for attack in self.attacks}
        merged.update((attack.label, attack) for attack in attacks)
        return self.model_copy(update={"attacks": list(merged.values())})

    def __repr__(self) -> str:
        survived = sum(attack.survived for attack in self.attacks)
        word = f", {self.judgement.word}" if self.judgement else ""
        attacks = f"; survived {survived} of {len(self.attacks)} attacks" if self.attacks else ""
        return f"<Result {self.run_id}: {self.status}{word}{attacks}>"

    __str__ = __repr__

    def to_pandas(self, table: str = "metrics") -> Any:
        """A table of the record as a `pandas.DataFrame`.

        Args:
            table: "metrics" (a row for each stage and metric), "attacks" (a row each), or "subjects" (a row for each
                one that is still revealed: by the model as it is, and by each attack).

        Raises:
            UserError: an unknown table, one that lies in the run's directory alone, or pandas is not installed.
        """
        check_table(table)
        if table == "metrics":
            stages = {"before": self.before, "after": self.after}
            stages |= {f"reference:{name}": metrics for name, metrics in self.references.items()}
            return table_of(metric_rows(stages | {f"attack:{a.label}": a.metrics for a in self.attacks}))
        if table == "attacks":
            keys = ("kept", "bound", "outcome", "survived", "threshold", "seconds", "settings")
            attacks = [{"attack": a.label, **{key: getattr(a, key) for key in keys}} for a in self.attacks]
            return table_of(attacks, ("attack", *keys[:-1]))
        if table == "subjects":
            people = self.judgement.subjects if self.judgement else None
            revealed = [("after", people.after if people else []), *((a.label, a.revealed) for a in self.attacks)]
            names = people.worst if people else []
            subjects = [{"subject": name} | {by: name in whom for by, whom in revealed} for name in names]
            return table_of(subjects, ("subject", *(by for by, _ in revealed)))
        raise UserError(f"a result has no {table}: they lie in its directory; letgo.read_run(DIR).to_pandas({table!r})")


class SampleRow(BaseModel):
    """A line of `samples.jsonl`: what a model (`stage`) scored on one item."""

    model_config = ConfigDict(strict=True)

    stage: str
    seed: int
    set: str
    id: str
    group: str
    scores: dict[str, float]
    question: str = ""
    answer: str = ""
    generated: str = ""
    digest: str = ""
    seen: bool = False


class HistoryRow(BaseModel):
    """A line of `history.jsonl`: a logged step or a look, with whatever was measured."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, float | str | None]

    step: float


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def new_run_id(created: str, prefix: str = "") -> str:
    """An id of a run made at a time as `now` writes it: sortable, and unlike any other."""
    return f"{prefix}{created.replace(':', '').replace('+0000', 'Z')}-{uuid.uuid4().hex[:6]}"


def write_result(directory: Path, result: Result) -> Path:
    """Write `result.json` whole; returns its path."""
    check_held(directory)
    path = directory / RESULT_FILE
    write_json(path, result.model_dump(mode="json", by_alias=True))
    return path


def is_run(directory: Path) -> bool:
    """Whether there is a result, be it one that can't be read."""
    return os.path.lexists(directory / RESULT_FILE)


def read_result(directory: Path) -> Result:
    """Read a run directory's result; a missing, broken or newer one is a `UserError`."""
    if not is_run(directory):
        raise UserError(f"{directory} is not a run directory: it has no {RESULT_FILE}")
    return read_document(directory / RESULT_FILE, Result, SCHEMA)


def read_samples(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's samples; none where it has no such file."""
    return _rows(directory / SAMPLES_FILE, SampleRow)


def read_history(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's history; none where it has no such file."""
    return _rows(directory / HISTORY_FILE, HistoryRow)


def _rows(path: Path, model: type[BaseModel]) -> list[dict[str, Any]]:
    rows = read_json_lines(path) if os.path.lexists(path) else []
    for number, row in enumerate(rows, start=1):
        validated(f"{path}:{number}", model, row)
    return rows
