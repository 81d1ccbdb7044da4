"""What a benchmark is: forget and retain rows to train on, and items and texts to score a model on.

Scoring makes samples (one for each question or text), and every metric is a pure function of samples, so that a metric
can be taken again over a part of them (the groups that an attacker never saw) without running a model.

A benchmark with its own prompts, generation or scores is a subclass that overrides `work` (what it asks of a model)
and `metrics_of` (its metrics), and `encode` where its training rows are tokenised in another way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from letgo.benchmarks import BENCHMARKS, BenchmarkRecord
from letgo.benchmarks.engine.items import FEW_TEXTS, Item, Sample, SetName, Text, few_of, limited
from letgo.benchmarks.engine.own_metrics import OwnMetric, metrics_over_sets, own_metrics, with_metrics
from letgo.benchmarks.engine.questions import (
    QUESTION_SCORES,
    QUESTION_SETS,
    general_metrics,
    items_part,
    means,
    membership_metrics,
    of_set,
    texts_part,
)
from letgo.benchmarks.engine.reference import ReferenceResult
from letgo.benchmarks.engine.requests import Work, asked_of, joined, run_works
from letgo.core.catalog import did_you_mean
from letgo.core.errors import EmptyScoreError, UserError
from letgo.core.progress import Quiet, Reporter
from letgo.core.values import shown
from letgo.data.binding import row_value
from letgo.data.encode import Encoded, EncodedRows, EncodeOptions, Template, encode_rows, resolve_template
from letgo.data.rows import Row
from letgo.metrics.records import Headline
from letgo.runs.results import Metrics
from letgo.scoring.scoring import ResumeLog, backend_of
from letgo.scoring.server.served import Served

__all__ = ["Benchmark", "Headline", "Item", "Sample", "SetName", "Text"]
RETRAINED = "retrained"
"""The reference that never saw the forget set."""
STAND_IN = "forget_rouge"
"""What forgetting is judged by where no headline can be measured."""
Learn = Literal["full", "retain"]
"""What the models that a benchmark begins with are taught: all of it, or all but the forget set."""
LEARN = get_args(Learn)
_NAMED = 4
"""Sets that a note names one by one."""


@dataclass(frozen=True)
class Benchmark:
    """Data and scores under one name.

    Attributes:
        name: as in the catalog; `settings` are those that made it.
        forget, retain: rows to unlearn and to keep, for training.
        items, texts: what a model is scored on.
        headlines: the metrics by which forgetting, and what an attack leaves of it, are judged; by default those of the
            catalog's record.
        template: how questions become prompts.
        generated: of each set, how many items are also answered by generation (spread over the set); None for all.
        control: rows of facts that no model knew, which an attacker who trains on the forget set is given alongside;
            the items of set "control" score them. They tell relearning from learning.
        references: other models to be scored beside (the retrained one), by name: directories, or behind a server.
        version: raised whenever the same model would score otherwise: scores of two versions are never compared.
        provenance: where the data came from (repository and commit, or folder), for the record.
        notes: remarks on the scores: what is missing and why.
        own_metrics: the user's, which are taken of every sample beside the benchmark's scores.
        sequence: specs of the benchmarks that this one stands for, to be unlearned one after another; with `chained`
            each starts from the model that the one before it left, else all start from the same model.
    """

    name: str
    forget: Sequence[Row]
    retain: Sequence[Row] = ()
    items: Sequence[Item] = ()
    texts: Sequence[Text] = ()
    headlines: tuple[Headline, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    template: Template = "auto"
    generated: int | Mapping[SetName, int] | None = None
    references: Mapping[str, str | Served] = field(default_factory=dict)
    version: int = 1
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
    chained: bool = False
    control: Sequence[Row] = ()
    own_metrics: Sequence[OwnMetric] = ()

    def __post_init__(self) -> None:
        if not self.headlines and self.name in BENCHMARKS:
            object.__setattr__(self, "headlines", BENCHMARKS.record(self.name).headlines)

    @property
    def headline_floors(self) -> dict[str, float]:
        """The headlines as a result records them: metric -> what a model that knows nothing scores."""
        return {headline.metric: headline.floor for headline in self.headlines}

    @property
    def contents(self) -> dict[str, list[Any]]:
        """The rows, and what is asked, as JSON values, for a record to be bound to (`letgo.runs.digests`)."""
        rows = {"forget": self.forget, "retain": self.retain, "control": self.control}
        asked = [
            [item.set, item.id, item.task, row_value(item.row), item.wrong, item.paraphrase, item.wrong_paraphrases]
            for item in self.items
        ]
        texts = [[text.set, text.id, text.task, text.text] for text in self.texts]
        there = {name: members for name, members in rows.items() if not getattr(members, "missing", False)}
        return {name: [row_value(row) for row in members] for name, members in there.items()} | {
            "scored": [*asked, *texts]
        }

    def groups(self) -> list[str]:
        """The groups of the forget rows, in order: what an attack may hold out."""
        return list(dict.fromkeys(row.group for row in self.forget))

    def template_for(self, asked: Template | None) -> Template:
        """The template that a run asks for; the benchmark's where the run leaves the choice."""
        return self.template if asked in (None, "auto") else asked

    def encode(self, tokenizer: Any, rows: Sequence[Row], **options: Unpack[EncodeOptions]) -> EncodedRows:
        """Forget or retain rows (or some of them) as tokens to train on, with notes; options as in `encode_rows`."""
        options["template"] = self.template_for(options.get("template"))
        return encode_rows(tokenizer, rows, **options)

    def encode_alternatives(
        self, tokenizer: Any, encoded: Sequence[Encoded], answers: Sequence[str], **options: Unpack[EncodeOptions]
    ) -> list[Encoded]:
        """The prompts of rows already encoded, each with another answer; aligned with them, so none is dropped."""
        rows = [replace(item.row, target=answer, ends=True) for item, answer in zip(encoded, answers, strict=True)]
        options["name"] = "alternatives"
        if options.get("long_rows") == "drop":
            options["long_rows"] = "cut"
        return self.encode(tokenizer, rows, **options)[0]

    def few(
        self,
        limit: int | None = None,
        *,
        sets: Collection[SetName] = ("forget", "retain"),
        without: Collection[str] = (),
    ) -> Benchmark:
        """This benchmark with a few of its items and general texts, for looks at a model while it is trained or
        attacked. Items of a membership test (a task that the holdout set has too) are left out.

        Args:
            limit: they are among the first so many of each set.
            sets: of which items are taken.
            without: groups that are left out of a set which has others.
        """
        membership = {item.task for item in self.items if item.set == "holdout" and item.task}
        asked = [item for item in limited(self.items, checked_limit(limit)) if item.set in sets]
        asked = [item for item in asked if item.task not in membership]
        others = {item.set for item in asked if item.group not in without}
        asked = [item for item in asked if item.group not in without or item.set not in others]
        texts = [text for text in limited(self.texts, limit) if text.set == "general"]
        # To write answers takes longest. Where no headline needs them one is written, as the engine wants at least one.
        written = None if any(headline.metric.endswith("rouge") for headline in self.headlines) else 1
        return replace(self, items=few_of(asked), texts=few_of(texts, FEW_TEXTS), generated=written)

    def prepare(self) -> None:
        """Load what scoring needs beside the model, so that something missing is an error before anything is run."""

    def work(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        """What to ask of a model, and how to make samples of its answers. The model is looked at (its context length),
        not run."""
        items, texts = limited(self.items, checked_limit(limit)), limited(self.texts, limit)
        form = resolve_template(tokenizer, self.template_for(template))
        return joined([items_part(tokenizer, items, form, generated=self.generated), texts_part(tokenizer, texts)])

    def asked(self, model: Any, tokenizer: Any, *, limit: int | None = None, template: Template | None = None) -> Work:
        """What is asked of this model: `work`, as far as its backend can do it.

        Raises:
            EmptyScoreError: there is nothing to score.
            UserError: nothing of it can be measured by this backend.
        """
        if (reference := self.compared_with()) is not None:
            reference.check_engine(model)
        work = self.work(model, tokenizer, limit=limit, template=template)
        if not work.size:
            raise EmptyScoreError(f"benchmark {self.name!r} has nothing to score")
        return with_metrics(asked_of(self.name, work, backend_of(model)), self.own_metrics)

    def samples(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limit: int | None = None,
        template: Template | None = None,
        reporter: Reporter | None = None,
        name: str = "scoring",
        log: ResumeLog | None = None,
    ) -> list[Sample]:
        """Score a model: a sample for every item and text, at most `limit` of each set. `log` keeps what is scored,
        and has it again after a kill."""
        self.prepare()
        work = self.asked(model, tokenizer, limit=limit, template=template)
        with (reporter or Quiet()).task(name, work.size) as task:
            [samples] = run_works(model, tokenizer, [work], advance=task.advance, log=log)
        return samples

    def summarise(self, samples: Iterable[Sample]) -> Metrics:
        """The metrics of samples: the benchmark's own, general perplexity and degeneration, and the membership AUC
        where forget and holdout texts were scored; an error where there is none."""
        every = list(samples)
        metrics = self.metrics_of(every) | general_metrics(every) | metrics_over_sets(every, self.own_metrics)
        if "forget_membership_auc" not in metrics:
            metrics |= membership_metrics(every)
        if not metrics:
            raise EmptyScoreError(f"benchmark {self.name!r}: no sample had a score")
        return metrics

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        """The benchmark's own metrics: a mean for every score of each set of questions."""
        metrics: Metrics = {}
        for name in QUESTION_SETS:
            metrics |= means(of_set(samples, name), name, QUESTION_SCORES)
        return metrics

    def compared_with(self) -> ReferenceResult | None:
        """The result of another model that scores are compared with, where one is given."""
        return None

    def reference_metrics(self) -> dict[str, Metrics]:
        """Metrics of other models, measured before and given by path (TOFU's retain model), by name."""
        return {}

    def notes_for(self, tokenizer: Any) -> list[str]:
        """`notes`, and remarks on the scores under this tokenizer."""
        return list(self.notes)

    def scored_counts(self) -> dict[str, int]:
        """How many items and texts there are to score in each set (and task), without general text."""
        scored: list[Item | Text] = [*self.items, *self.texts]
        return dict(Counter(f"{thing.set} {thing.task}".strip() for thing in scored if thing.set != "general"))

    def limit_notes(self, limit: int | None) -> list[str]:
        """Notes on limits, this one and the benchmark's setting, that are larger than a set."""
        counts, notes = self.scored_counts(), []
        for asked in dict.fromkeys((self.settings.get("limit"), limit)):
            fewer = [f"{name} has {count}" for name, count in counts.items() if asked is not None and count < asked]
            if fewer:
                rest = f" and {len(fewer) - _NAMED} more have fewer" if len(fewer) > _NAMED else ""
                sizes = ", ".join(fewer[:_NAMED]) + rest
                notes.append(f"{self.name}: limit {asked} was asked, but {sizes}: all are scored")
        return notes

    def identity(self, tokenizer: Any, template: Template | None = None) -> dict[str, Any]:
        """What was scored and by which rules, for the record (`config.scored`): benchmark, version of its scores, the
        template as it is resolved for this tokenizer, and where the data came from."""
        form = resolve_template(tokenizer, self.template_for(template))
        return {"benchmark": self.name, "version": self.version, "template": form, **self.provenance}


def completed(made: Any, record: BenchmarkRecord, settings: Mapping[str, Any], metrics: Sequence[str]) -> Benchmark:
    """A benchmark with the user's own metrics, and the user's own benchmark under the name that leads to it."""
    if not isinstance(made, Benchmark):
        raise UserError(f"benchmark {record.name!r} gives {shown(made)}, which is no letgo Benchmark")
    if record.faithfulness == "yours":
        given = made.headlines or record.headlines
        made = replace(made, name=record.name, settings=dict(settings), headlines=given)
    return replace(made, own_metrics=own_metrics(metrics))


def headlines_of(benchmark: Benchmark, measured: Metrics) -> dict[str, float]:
    """The headlines as a result records them, of those that were measured: metric -> what a model that knows nothing
    scores. Through a server that gives no log-probabilities, ROUGE stands in for them."""
    floors = {metric: floor for metric, floor in benchmark.headline_floors.items() if metric in measured}
    return floors or ({STAND_IN: 0.0} if STAND_IN in measured else benchmark.headline_floors)


def to_learn(
    name: str, learn: Learn | None, forget: Sequence[Row], kept: Sequence[Row], notes: list[str]
) -> tuple[list[Row], list[Row]]:
    """The rows to forget and to keep; with `learn` nothing is forgotten, and what is to be learned is kept."""
    if learn is None:
        return list(forget), list(kept)
    check_choice(f"{name}: learn", learn, LEARN)
    learned = [*kept, *forget] if learn == "full" else list(kept)
    notes.append(f"{name}: {len(learned)} rows to be learned, none to be forgotten (learn={learn})")
    return [], learned


def spec_settings(values: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """The constructor's arguments (`locals()` at its beginning) that a benchmark's spec names: those that are neither
    None nor the default given here, with paths as text."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if value is not None and (name not in defaults or value != defaults[name])
    }


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise a `UserError` for a setting that is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_choice(name: str, value: Any, known: Collection[str]) -> None:
    """Raise a `UserError` for a setting that is none of the known values."""
    if value not in known:
        raise UserError(f"{name} is {value!r}; known: {', '.join(known)}{did_you_mean(str(value), known)}")


def checked_limit(limit: int | None) -> int | None:
    if limit is not None:
        check_whole("limit", limit)
    return limit
