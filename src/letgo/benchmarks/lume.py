"""LUME, the data of SemEval 2025's task 4: stories, invented people, Wikipedia (arXiv 2502.15097)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from letgo.benchmarks.engine.base import Item, Sample, SetName, check_choice, checked_limit, spec_settings
from letgo.benchmarks.engine.continuations import Continued
from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.benchmarks.engine.items import limited
from letgo.benchmarks.engine.questions import means, of_set
from letgo.benchmarks.engine.tables import PINNED, Tables
from letgo.core.errors import UserError
from letgo.core.values import Count
from letgo.data.rows import Row
from letgo.runs.results import Metrics

TASKS = ("Task1", "Task2", "Task3")
"""Long stories; short biographies with invented addresses and numbers; documents of the model's own training."""
KINDS = {"sc": "completion", "qa": "question"}
"""By the last letters of an id: a sentence to be gone on with, a question to be answered."""


def lume(
    *,
    task: str = "all",
    limit: Count | None = None,
    train_limit: Count | None = None,
    general: bool = True,
    data: str | None = None,
    revision: str | None = None,
) -> Lume:
    """SemEval's forget and retain sets: trained on the fold `train`, scored on the fold `validation`.

    Sentences to be gone on with are scored by ROUGE-L recall (`forget_completion_rouge`), questions by exact match
    (`forget_question_exact_match`).

    Args:
        task: Task1 (stories), Task2 (invented people), Task3 (documents), or all.
        limit: score at most so many sentences and questions of each set.
        train_limit: train on at most so many rows of each.
        general: also measure perplexity on letgo's own paragraphs, to tell a broken model from a forgetful one.
        data: a folder with the hub's layout (data/forget_train-00000-of-00001.parquet, …); by default LETGO_DATA's
            `lume`, else the hub, to which access has to be asked for.
        revision: another commit of the hub.

    Raises:
        UserError: an unknown task, or data that can't be had.
    """
    settings = spec_settings(locals(), task="all", general=True)
    check_choice("lume: task", task, (*TASKS, "all"))
    scored, trained = checked_limit(limit), checked_limit(train_limit)
    tables = PINNED["lume"].open(data=data, revision=revision)
    items = [item for name in ("forget", "retain") for item in _items(tables, name, task)]
    return Lume(
        name="lume",
        settings=settings,
        forget=_rows(tables, "forget_train", task)[:trained],
        retain=_rows(tables, "retain_train", task)[:trained],
        items=limited(items, scored),
        texts=general_paragraphs(held_out=True) if general else [],
        template="plain",
        provenance={"task": task, **tables.provenance},
    )


@dataclass(frozen=True)
class Lume(Continued):
    """Rows whose output a model is to write behind their input; a document, which the id begins with, is a group."""

    def metrics_of(self, samples: Sequence[Sample]) -> Metrics:
        metrics: Metrics = {}
        for name in ("forget", "retain"):
            members = of_set(samples, name)
            metrics |= means(members, name, ("rouge", "exact_match", "probability"))
            for kind, score in (("completion", "rouge"), ("question", "exact_match")):
                alike = [sample for sample in members if sample.id.startswith(f"{kind}/")]
                metrics |= means(alike, f"{name}_{kind}", (score,))
        return metrics


def _rows(tables: Tables, split: str, task: str) -> list[Row]:
    rows = []
    for where, row in tables.table("data", split, texts=("id", "input", "output", "task")).records:
        if task in ("all", row["task"]):
            # The words of the output follow those of the input.
            document = row["id"].rstrip("0123456789")[:-2]
            form = ("prompt", "completion")
            rows.append(Row(form, row["input"], f" {row['output'].lstrip()}", document, where, fields=dict(row)))
    if not rows:
        raise UserError(f"lume: {split} has no rows of {task}; its tasks: {', '.join(TASKS)}")
    return rows


def _items(tables: Tables, name: SetName, task: str) -> list[Item]:
    items = []
    for row in _rows(tables, f"{name}_validation", task):
        letters = row.fields["id"].rstrip("0123456789")[-2:]
        if letters not in KINDS:
            raise UserError(f"{row.where}: id {row.fields['id']!r} ends neither in sc nor in qa and a number")
        kind = KINDS[letters]
        items.append(Item(name, f"{kind}/{row.fields['id']}", row.group, row, task=kind))
    return items
